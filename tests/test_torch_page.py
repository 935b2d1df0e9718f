"""docs/torch.md: its examples run and do what the page says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torchvision.models import mobilenet_v2

import mmnetaug  # noqa: F401  (before torchvision: it declares the operators that some builds lack)
from mmnetaug.elastic import Elastic, NotUnderstood, make_elastic, register_rule
from mmnetaug.elastic.graph.rules import RULES

PAGE = (Path(__file__).parents[1] / "docs/torch.md").read_text(encoding="utf-8")
TRAINING, OPERATOR, RULE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


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


class Activation(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def elastic_with(function: Callable) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), Activation(function), nn.Conv2d(16, 4, 1))
    make_elastic(network, lambda model, x: [model(x)], (3, 8, 8), [1, 2], [1, 2])
    return network


def test_an_operator_gets_a_rule(monkeypatch):
    monkeypatch.setitem(RULES, "mine::my_activation", None)  # removed from the table when the test ends
    scope = {}
    exec(compile(OPERATOR, "torch.md", "exec", dont_inherit=True), scope)  # annotations as they are written
    group, _ = elastic_with(scope["my_activation"]).elastic.groups
    assert str(group) == "0: width, held at 16: mine::my_activation in 1 is not understood"
    exec(RULE, {})
    network = elastic_with(scope["my_activation"])
    group, _ = network.elastic.groups
    assert str(group) == "0: width, [16, 32]"
    image = torch.randn(2, 3, 8, 8)
    with network.elastic.at(network.elastic.largest()):
        network(image).square().sum().backward()
        expected = torch.autograd.grad(
            network[2](network[0](image) ** 3).square().sum(), network[0].stored("weight")
        )  # without the operator
    torch.testing.assert_close(network[0].stored("weight").grad, *expected)


def test_a_rule_goes_before_the_tag_of_elementwise_operators(monkeypatch):
    monkeypatch.setitem(RULES, "erf", None)

    @register_rule("erf")
    def refuse(reader, result, x):
        raise NotUnderstood("an own rule")

    group, _ = elastic_with(torch.erf).elastic.groups
    assert group.held_reason == "an own rule"
