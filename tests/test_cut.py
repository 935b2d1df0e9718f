"""Cutting a network down to a narrower one: which channels are kept, and that everything along them comes along."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmnetaug.elastic import cut_channels
from mmnetaug.models.tensor_mode import tensor_forward

# --- networks in which all channels but those that fit into the tiny one are dead -------------------------------------


class Mixed(nn.Module):
    """Concatenation, halves that gate each other, pairs of channels in a grouped convolution, transposed convolution.

    At width 1 its layers have 4 to 8 channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        a, b, pairs = 6 * width, 4 * width, 4 * width
        self.left, self.left_norm = nn.Conv2d(3, a, 3, 2, 1, bias=False), nn.BatchNorm2d(a)
        self.right, self.right_norm = nn.Conv2d(3, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b)
        self.join, self.join_norm = nn.Conv2d(a + b, 2 * b, 1, bias=False), nn.BatchNorm2d(2 * b)
        self.up, self.up_norm = nn.ConvTranspose2d(b, pairs, 2, 2, bias=False), nn.BatchNorm2d(pairs)
        self.grouped, self.grouped_norm = nn.Conv2d(pairs, pairs, 3, groups=pairs // 2), nn.BatchNorm2d(pairs)
        self.last = nn.Linear(pairs, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left_norm(self.left(x)).relu(), self.right_norm(self.right(x)).relu()
        value, gate = self.join_norm(self.join(torch.cat([left, right], 1))).chunk(2, 1)
        x = self.up_norm(self.up(value * gate.relu())).relu()
        return self.last(self.grouped_norm(self.grouped(x)).relu().mean((2, 3)))


# The channels of a layer in parts: (number in the large network, in the tiny one, of how many that stay together).
MIXED = {
    "join": [(18, 6, 1), (12, 4, 1)],
    "join_norm": [(12, 4, 1), (12, 4, 1)],
    "up": [(12, 4, 1)],
    "up_norm": [(12, 4, 2)],
    "grouped_norm": [(12, 4, 2)],
    "last": [(12, 4, 2)],
}


def classifier(backbone: dict, features: int) -> nn.Module:
    config = dict(
        type="ImageClassifier",
        backbone=backbone,
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=10, in_channels=features),
    )
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(ConfigDict(config))


def mobilenet_v2(width: float) -> nn.Module:
    return classifier(dict(type="MobileNetV2", widen_factor=width), 1280)


def mobilenet_v3(width: float) -> nn.Module:
    return classifier(dict(type="mmnetaug.TinyNet", arch="mobilenet_v3_large", widen_factor=width), 1280)


def resnet(width: int) -> nn.Module:
    return classifier(dict(type="ResNet", depth=18, base_channels=width, stem_channels=width), 8 * width)


def randomise(network: nn.Module) -> nn.Module:
    """Float64, in evaluation mode, no tensor constant."""
    generator = torch.Generator().manual_seed(0)
    network.double().eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.dim() > 1:
                tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=generator)
            elif tensor.is_floating_point():
                low, high = (0.5, 1.5) if name.endswith(("weight", "var")) else (-0.2, 0.2)
                tensor.uniform_(low, high, generator=generator)
    return network


def dead(parts: list[tuple[int, int, int]]) -> list[int]:
    """Channels to silence: the same for all layers as wide, so that they agree across residual sums."""
    numbers, offset = [], 0
    for large, tiny, step in parts:
        blocks = torch.randperm(large // step, generator=torch.Generator().manual_seed(large))
        numbers += [offset + step * block + i for block in blocks[tiny // step :].tolist() for i in range(step)]
        offset += large
    return numbers


def silence(large: nn.Module, tiny: nn.Module, parts: dict[str, list[tuple[int, int, int]]]) -> None:
    """Silences channels that do not fit into the tiny network: they are zero, and read with zero weights."""
    narrow = dict(tiny.named_modules())
    with torch.no_grad():
        for name, layer in large.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                gone = dead(parts.get(name, [(layer.num_features, narrow[name].num_features, 1)]))
                layer.weight[gone] = layer.bias[gone] = 0
            elif isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d) and getattr(layer, "groups", 1) == 1:
                transposed = isinstance(layer, nn.ConvTranspose2d)
                dim = 0 if transposed else 1
                own, other = layer.weight.shape, narrow[name].weight.shape
                gone = dead(parts.get(name, [(own[dim], other[dim], 1)]))
                layer.weight.index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
                if name.endswith("se.conv1.conv"):  # which no batch norm follows
                    gone = dead([(own[0], other[0], 1)])
                    layer.weight[gone] = layer.bias[gone] = 0


@pytest.mark.parametrize(
    ("build", "widths", "size", "parts"),
    [
        pytest.param(mobilenet_v2, (0.35, 0.75), 64, {}, marks=pytest.mark.slow),
        pytest.param(mobilenet_v3, (0.35, 0.75), 64, {}, marks=pytest.mark.slow),
        pytest.param(resnet, (8, 20), 32, {}, marks=pytest.mark.slow),
        (Mixed, (1, 3), 16, MIXED),
    ],
)
def test_a_network_with_dead_channels_is_cut_to_the_same_function(build, widths, size, parts):
    torch.manual_seed(0)
    tiny, large = (randomise(build(width)) for width in widths)
    silence(large, tiny, parts)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    before = copy.deepcopy(large.state_dict())
    with torch.no_grad():
        (expected,) = tensor_forward(large, images)
        assert expected.std(0).max() > 1e-3 and not torch.allclose(tensor_forward(tiny, images)[0], expected)
        cut_channels(tiny, large, tensor_forward, (3, size, size))
        torch.testing.assert_close(tensor_forward(tiny, images)[0], expected, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in large.state_dict().items())


# --- which channels are kept, by hand ---------------------------------------------------------------------------------


class TwoBlocks(nn.Module):
    """A residual block and an output; ``width`` and ``hidden`` channels."""

    def __init__(self, width: int, hidden: int, shortcut: bool = True, outputs: int = 1, kernel: int = 1) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.stem = nn.Conv2d(1, width, kernel, padding=kernel // 2)
        self.expand = nn.Conv2d(width, hidden, 1)
        self.norm = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, width, 1)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.project(self.norm(self.expand(x)).relu())
        return self.head(x + out if self.shortcut else out)


def cut(tiny: nn.Module, large: nn.Module) -> None:
    cut_channels(tiny, large, lambda model, x: [model(x)], (1, 8, 8))


def test_the_channels_with_the_largest_weights_behind_them_are_kept_in_their_order():
    large, tiny = TwoBlocks(3, 4), TwoBlocks(2, 2)
    for number, tensor in enumerate(large.state_dict().values()):
        if tensor.is_floating_point():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) + 100.0 * number)
    with torch.no_grad():
        # The block's width is read twice. Sums per channel: 4, 1, 2 here, and 0.5, 3, 1 in the head: 0 and 1 are kept.
        large.expand.weight.copy_(torch.tensor([[1, 0, 0.5], [-1, 0, 0.5], [1, 1, 0.5], [-1, 0, 0.5]])[..., None, None])
        large.head.weight.copy_(torch.tensor([[-0.5, 3, 1]])[..., None, None])
        # Sums per hidden channel: 3, 6, 1, 5. Channels 1 and 3 are kept.
        large.project.weight.copy_(torch.tensor([[1, -2, 0, 1], [1, 2, 1, 2], [1, 2, 0, -2]])[..., None, None])
    cut(tiny, large)
    theirs, width, hidden = large.state_dict(), [0, 1], [1, 3]
    expected = {
        "stem.weight": theirs["stem.weight"][width],
        "stem.bias": theirs["stem.bias"][width],
        "expand.weight": theirs["expand.weight"][hidden][:, width],
        "expand.bias": theirs["expand.bias"][hidden],
        **{
            f"norm.{name}": theirs[f"norm.{name}"][hidden] for name in ("weight", "bias", "running_mean", "running_var")
        },
        "norm.num_batches_tracked": theirs["norm.num_batches_tracked"],
        "project.weight": theirs["project.weight"][width][:, hidden],
        "project.bias": theirs["project.bias"][width],
        "head.weight": theirs["head.weight"][:, width],
        "head.bias": theirs["head.bias"],
    }
    assert expected.keys() == tiny.state_dict().keys()
    for name, value in tiny.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_channels_that_nothing_reads_are_ranked_by_the_weights_that_make_them():
    large, tiny = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        large.weight.copy_(torch.tensor([1.0, -3, 2, 0]).view(4, 1, 1, 1))
    cut(tiny, large)
    assert tiny.weight.flatten().tolist() == [-3, 2] and torch.equal(tiny.bias, large.bias[1:3])


class Sorted(TwoBlocks):
    """Mixes channels by an operator without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.head(self.stem(x).cumsum(1))


class Groups(nn.Module):
    """Group norm with a fixed number of groups."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(1, width, 1), nn.GroupNorm(2, width), nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)))


@pytest.mark.parametrize(
    ("tiny", "large", "message"),
    [
        (TwoBlocks(2, 2), nn.Sequential(nn.Conv2d(1, 3, 1)), "one of the two networks alone holds 0.bias, 0.weight"),
        (TwoBlocks(2, 2, shortcut=False), TwoBlocks(3, 4), "run other operators, from conv2d in head on"),
        (TwoBlocks(2, 5), TwoBlocks(3, 4), "of expand.weight has 4 channels in the larger network and 5 in the tiny"),
        (TwoBlocks(2, 2, kernel=3), TwoBlocks(3, 4, kernel=5), "dimension 2 of stem.weight has 5 .* and 3 .*: made by"),
        (Sorted(2, 2), Sorted(3, 4), "of stem.weight has 3 channels .*: cumsum in the network is not understood"),
        (Groups(4), Groups(8), "of stem.weight has 8 channels .*: they come in groups of 4 there and of 2 here"),
        (TwoBlocks(2, 2, outputs=1), TwoBlocks(3, 4, outputs=2), "dimension 0 of head.weight"),
    ],
    ids=["names", "shortcut", "wider", "kernel", "not understood", "group size", "single channel"],
)
def test_what_does_not_fit_is_one_error(tiny, large, message):
    before = copy.deepcopy(tiny.state_dict())
    with pytest.raises(ValueError, match=message):
        cut(tiny, large)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
