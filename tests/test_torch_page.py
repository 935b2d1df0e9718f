"""docs/torch.md: its examples run and do what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from torchvision.models import mobilenet_v2

import mmnetaug  # noqa: F401  (before torchvision: it declares the operators that some builds lack)
from mmnetaug.elastic import Elastic, make_elastic
from mmnetaug.elastic.graph.rules import RULES

PAGE = (Path(__file__).parents[1] / "docs/torch.md").read_text(encoding="utf-8")
TRAINING, RULE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_a_torchvision_network_is_trained_and_its_tiny_checkpoint_is_stock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    batches = [(torch.randn(2, 3, 64, 64), torch.tensor([step, 9 - step])) for step in range(3)]
    scope = {"batches": batches}
    exec(TRAINING, scope)
    plain = mobilenet_v2(width_mult=0.35, num_classes=10)
    state = torch.load("tiny.pth", weights_only=True)
    plain.load_state_dict(state, strict=True)
    image = batches[0][0]
    assert torch.equal(plain.eval()(image), scope["model"].eval()(image))
    assert all(int(count) == len(batches) for name, count in state.items() if name.endswith("num_batches_tracked"))
    # weights that read new channels start at zero: augmented passes alone move them
    assert all(
        layer.stored(name).narrow(axis.dim, axis.base, axis.stored - axis.base).any()
        for layer in scope["model"].modules()
        if isinstance(layer, Elastic)
        for name, read in layer.elastic_reads.items()
        for axis in layer.elastic_axes[name]
        if axis.dim == read
    )


@torch.library.custom_op("mmnetaug_test::my_activation", mutates_args=())
def my_activation(x: torch.Tensor) -> torch.Tensor:
    return x.sigmoid()


my_activation.register_fake(torch.empty_like)


class Activation(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return my_activation(x)


def widths(shape: tuple[int, ...] = (3, 8, 8)) -> list[str]:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), Activation(), nn.Conv2d(16, 4, 1))
    return str(make_elastic(network, lambda model, x: [model(x)], shape, [1, 2], [1, 2])).splitlines()


def test_an_operator_gets_a_rule(monkeypatch):
    monkeypatch.setitem(RULES, "my_activation", None)  # removed from the table when the test ends
    assert widths()[0] == "0: width, held at 16: my_activation in 1 is not understood"
    exec(RULE, {})
    assert widths()[0] == "0: width, [16, 32]"
