"""Random small networks: each is augmented and right, or held with a reason. Written by Hypothesis, shrunk where wrong.

    python -m pytest tests/test_random_networks.py                                              # a few, always the same
    python -m pytest tests/test_random_networks.py --hypothesis-profile=long --hypothesis-seed=0   # 2 500 of them
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import event, example, given
from hypothesis import strategies as st
from networks import plain_at, randomise, scatter_gradients
from torch import Tensor, nn
from torch.nn import functional

from mmnetaug.elastic import base_state_dict, fill_new_channels, make_elastic, sort_hidden_channels

WIDTH, EXPAND, SIZE = [1, 1.5, 2.25], [1, 1.25, 2], 12
DEPTHWISE = 0  # as many groups as channels


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class WrittenGroupNorm(nn.Module):
    """The number of groups is written down."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x, 2, self.scale, self.shift)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "statistics": lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
    "group": lambda channels: nn.GroupNorm(max(2, channels // 4), channels),
    "all": lambda channels: nn.GroupNorm(1, channels),
    "layer": LayerNorm2d,
    "written": WrittenGroupNorm,
}
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda channels: nn.ReLU(inplace=True),
    "swish": lambda channels: nn.Hardswish(),
    "gelu": lambda channels: nn.GELU(),
    "prelu": nn.PReLU,
    "none": lambda channels: nn.Identity(),
}


class Block(nn.Module):
    """Reads ``inputs`` channels and makes ``outputs``."""

    mixes = False  # all channels at once, so that new ones change what the others are
    outputs: int


class Conv(Block):
    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int, norm: str, activation: str) -> None:
        super().__init__()
        groups, outputs = (inputs, inputs) if groups == DEPTHWISE else (groups, outputs)
        self.outputs, self.mixes = outputs, norm in ("all", "layer")
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=norm == "none")
        self.norm, self.activation = NORMS[norm](outputs), ACTIVATIONS[activation](outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class Twice(Block):
    """A module that is called twice, behind another norm each time."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.outputs = inputs
        self.conv, self.norms = nn.Conv2d(inputs, inputs, 1), nn.ModuleList(nn.BatchNorm2d(inputs) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.conv(x)).relu()
        return x


class Inverted(Block):
    """An inverted bottleneck, with squeeze-and-excitation if asked for."""

    def __init__(self, inputs: int, hidden: int, outputs: int, squeeze: bool) -> None:
        super().__init__()
        self.outputs = outputs
        self.expand, self.norm = nn.Conv2d(inputs, hidden, 1), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1)
        self.gate = nn.Sequential(nn.Conv2d(hidden, 4, 1), nn.SiLU(), nn.Conv2d(4, hidden, 1)) if squeeze else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(self.expand(x))).relu()
        if self.gate is not None:
            y = y * self.gate(functional.adaptive_avg_pool2d(y, 1)).sigmoid()
        y = self.project(y)
        return x + y if x.shape == y.shape else y


class Residual(Block):
    def __init__(self, inputs: int, inner: list[tuple]) -> None:
        super().__init__()
        self.inner = Chain(inputs, inner)
        self.shortcut = nn.Conv2d(inputs, self.inner.outputs, 1) if inputs != self.inner.outputs else nn.Identity()
        self.outputs, self.mixes = self.inner.outputs, self.inner.mixes

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + self.shortcut(functional.adaptive_avg_pool2d(x, y.shape[2:]))


class Concat(Block):
    """Branches side by side, with what they read if asked for."""

    def __init__(self, inputs: int, branches: list[list[tuple]], dense: bool) -> None:
        super().__init__()
        self.branches, self.dense = nn.ModuleList(Chain(inputs, branch) for branch in branches), dense
        self.outputs = sum(branch.outputs for branch in self.branches) + inputs * dense
        self.mixes = any(branch.mixes for branch in self.branches)

    def forward(self, x: Tensor) -> Tensor:
        parts = [functional.interpolate(branch(x), x.shape[2:]) for branch in self.branches]
        return torch.cat([x, *parts] if self.dense else parts, 1)


class Divide(Block):
    """Parts of the channels go different ways, cut by count, by shape, by a number that is kept or written down."""

    def __init__(self, inputs: int, how: str) -> None:
        super().__init__()
        self.outputs, self.how, self.part = inputs, how, inputs // 2
        self.conv = nn.Conv2d(inputs // 2, inputs // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        if self.how == "chunk":
            a, b = x.chunk(2, 1)
        elif self.how == "kept":
            a, b = x.split(self.part, 1)
        elif self.how == "written":
            a, b = x[:, : len(self.conv.weight)], x[:, len(self.conv.weight) :]
        elif self.how == "offset":
            a, b = x[:, :half], x[:, self.part : self.part + half]
        elif self.how == "ends":
            a, b = x[:, :half], x[:, -half:]
        else:
            a, b = x.view(x.shape[0], 2, half, *x.shape[2:]).unbind(1)
        return torch.cat([a, self.conv(b)], 1)


class Shuffle(Block):
    def __init__(self, inputs: int, groups: int) -> None:
        super().__init__()
        self.outputs, self.groups = inputs, groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Channels(Block):
    """A linear layer over channels that come last, and a scale of each."""

    def __init__(self, inputs: int, norm: bool) -> None:
        super().__init__()
        self.outputs, self.mixes = inputs, norm
        self.norm = nn.LayerNorm(inputs) if norm else nn.Identity()
        self.up, self.down, self.scale = nn.Linear(inputs, 8), nn.Linear(8, inputs), nn.Parameter(torch.rand(inputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.up(self.norm(x.permute(0, 2, 3, 1))).tanh()) * self.scale
        return x + y.permute(0, 3, 1, 2)


class Attention(Block):
    """Positions attend to each other, in heads of a kept number or a kept size."""

    mixes = True  # scores are sums over channels

    def __init__(self, inputs: int, sized: bool, scaled: bool) -> None:
        super().__init__()
        self.outputs, self.sized, self.scaled = inputs, sized, scaled
        self.qkv, self.out = nn.Conv2d(inputs, 3 * inputs, 1), nn.Conv2d(inputs, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = self.qkv(x).shape
        shape = (n, c // 12, 4, h * w) if self.sized else (n, 2, c // 6, h * w)
        q, k, v = (part.reshape(shape) for part in self.qkv(x).chunk(3, 1))
        scores = q.transpose(2, 3) @ k
        if self.scaled:
            scores = scores / shape[2] ** 0.5
        return self.out((v @ scores.softmax(-1).transpose(2, 3)).reshape(n, c // 3, h, w))


class Space(Block):
    """Attention over space, from the mean and the maximum over channels."""

    mixes = True

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.outputs, self.conv = inputs, nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class Transposed(Block):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs, self.conv = outputs, nn.ConvTranspose2d(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(self.conv(x), 2)


class Pool(Block):
    def __init__(self, inputs: int, how: str) -> None:
        super().__init__()
        self.outputs, self.how = inputs, how

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 4:
            return x
        if self.how == "fold":  # space to depth
            n, c, h, w = x.shape
            return x.view(n, c, h // 2, 2, w // 2, 2).mean((3, 5)) if h % 2 == w % 2 == 0 else x
        return functional.max_pool2d(x, 3, 2, 1) if self.how == "max" else functional.avg_pool2d(x, 2)


ODD = ["sign", "longer", "training", "other", "scalar", "constant", "alpha", "dilation", "roll", "fixed", "range"]


class Odd(Block):
    """Code that depends on how many channels there are."""

    def __init__(self, inputs: int, how: str) -> None:
        super().__init__()
        self.outputs, self.how, self.limit = inputs, how, inputs
        self.one, self.two = nn.Conv2d(inputs, inputs, 1), nn.Conv2d(inputs, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        wide = c > self.limit
        if self.how == "sign":
            x = self.one(-x if wide else x)
        elif self.how == "longer":
            x = self.one(x)
            x = -x if wide else x
        elif self.how == "training":
            x = self.one(-x if wide and self.training else x)
        elif self.how == "other":
            first, second = (self.two, self.one) if wide else (self.one, self.two)
            return first(x) - second(x)
        elif self.how == "scalar":
            x = self.one(x) * (c / 16)
        elif self.how == "constant":
            x = self.one(x) + torch.tensor(1 / c)
        elif self.how == "alpha":
            x = torch.add(self.one(x), x, alpha=c)
        elif self.how == "dilation":
            weight = self.one.weight.expand(-1, -1, 3, 3)
            x = functional.conv2d(x, weight, padding=1 + wide, dilation=1 + wide)
        elif self.how == "roll":
            x = self.one(x).roll(c, 3)
        elif self.how == "fixed":
            x = self.one(x.view(x.shape[0], self.limit, -1).softmax(-1).view(x.shape))
        elif self.how == "range":
            x = self.one(x) * torch.arange(c).view(1, c, 1, 1)
        return x + self.two(x)


class Drop(Block):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.outputs, self.drop = inputs, nn.Dropout2d(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)


class Chain(Block):
    """Blocks one behind the other, as a list of (class, arguments) says."""

    def __init__(self, inputs: int, spec: list[tuple]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for kind, *arguments in spec:
            self.blocks.append(kind(inputs, *arguments))
            inputs = self.blocks[-1].outputs
        self.outputs, self.mixes = inputs, any(block.mixes for block in self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Network(nn.Module):
    """A stem, blocks and a head: a classifier, or two feature maps."""

    def __init__(self, stem: int, spec: list[tuple], classifier: bool) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, stem, 3, padding=1), Chain(stem, spec)
        self.head = nn.Linear(self.body.outputs, 3) if classifier else nn.Conv2d(self.body.outputs, 2, 1)
        self.classifier = classifier

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body(self.stem(x))
        return [self.head(x.mean((2, 3)))] if self.classifier else [self.head(x), self.head(x.flip(3))]


CHANNELS, YES_OR_NO = st.sampled_from([4, 8, 12, 16]), st.booleans()
LEAVES = st.one_of(
    st.tuples(
        st.just(Conv),
        CHANNELS,
        st.sampled_from([1, 3]),
        st.sampled_from([1, 1, 2, 4, DEPTHWISE]),
        st.sampled_from(list(NORMS)),
        st.sampled_from(list(ACTIVATIONS)),
    ),
    st.tuples(st.just(Inverted), CHANNELS, CHANNELS, YES_OR_NO),
    st.tuples(st.just(Twice)),
    st.tuples(st.just(Divide), st.sampled_from(["chunk", "kept", "written", "offset", "ends", "view"])),
    st.tuples(st.just(Shuffle), st.sampled_from([2, 4])),
    st.tuples(st.just(Channels), YES_OR_NO),
    st.tuples(st.just(Attention), YES_OR_NO, YES_OR_NO),
    st.tuples(st.just(Space)),
    st.tuples(st.just(Transposed), CHANNELS),
    st.tuples(st.just(Pool), st.sampled_from(["max", "average", "fold"])),
    st.tuples(st.just(Drop)),
    st.tuples(st.just(Odd), st.sampled_from(ODD)),
)
BLOCKS = st.recursive(
    LEAVES,
    lambda blocks: st.one_of(
        st.tuples(st.just(Residual), st.lists(blocks, min_size=1, max_size=2)),
        st.tuples(st.just(Concat), st.lists(st.lists(blocks, max_size=2), min_size=1, max_size=3), YES_OR_NO),
    ),
    max_leaves=3,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@given(CHANNELS, st.lists(BLOCKS, min_size=1, max_size=3), YES_OR_NO)
@example(  # a held group whose width is no multiple of its step
    12, [(Residual, [(Divide, "chunk"), (Conv, 12, 1, 1, "group", "relu")]), (Conv, 12, 1, 1, "none", "relu")], True
)
@example(4, [(Concat, [[], []], False), (Odd, "roll")], False)  # a shift that equals the number of channels
@example(  # two groups, each of which reads the other
    8,
    [
        (Concat, [[(Inverted, 4, 16, True), (Residual, [(Divide, "kept")])]], True),
        (Divide, "chunk"),
        (Residual, [(Residual, [(Inverted, 4, 8, True), (Drop,)])]),
    ],
    False,
)
def test_random_networks_are_augmented_rightly_or_held_with_a_reason(stem, spec, classifier):
    torch.manual_seed(0)
    plain = Network(stem, spec, classifier)
    elastic = copy.deepcopy(plain)
    make_elastic(elastic, lambda network, x: network(x), (3, SIZE, SIZE), WIDTH, EXPAND)
    space = elastic.elastic
    held = [group for group in space.groups if len(group.widths) == 1]
    assert all(group.held_reason for group in held)
    event(f"augmented groups: {10 * (len(space.groups) - len(held)) // len(space.groups)} tenths")
    randomise(elastic)
    plain.load_state_dict(base_state_dict(elastic), strict=True)
    image = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    base_mode_is_the_plain_network(elastic, plain, image)
    elastic, plain, image = elastic.double(), plain.double(), image.double()
    sampled = [space.sample(0, 0), space.largest()]
    if not plain.body.mixes:
        every_network_starts_as_the_function_of_the_tiny_one(elastic, image, sampled)
    fill_new_channels(elastic, preserving=False)  # weights of zero would hide mistakes
    randomise(elastic)
    gradients_are_those_of_independent_networks(elastic, plain, image, [space.base(), *sampled])
    sorting_changes_nothing(elastic, image)


def base_mode_is_the_plain_network(elastic: nn.Module, plain: nn.Module, image: Tensor) -> None:
    elastic, plain = copy.deepcopy(elastic), copy.deepcopy(plain)
    for training in (False, True):
        elastic.train(training), plain.train(training)
        for ours, theirs in zip(run(elastic, image), run(plain, image), strict=True):
            assert torch.equal(ours, theirs)
    for key, value in base_state_dict(elastic).items():
        assert torch.equal(value, plain.state_dict()[key]), key


def gradients_are_those_of_independent_networks(
    elastic: nn.Module, plain: nn.Module, image: Tensor, sampled: list[list[int]]
) -> None:
    for widths in sampled:
        elastic, network = copy.deepcopy(elastic).train(), plain_at(elastic, plain, widths).train()
        with elastic.elastic.at(widths):
            outputs = run(elastic, image)
            loss_of(outputs).backward()
        expected = run(network, image)
        loss_of(expected).backward()
        for ours, theirs in zip(outputs, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        gradients = scatter_gradients(elastic, network, widths)
        scale = max(1.0, *(gradient.abs().max().item() for gradient in gradients.values()))
        for name, parameter in elastic.named_parameters():
            got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert (got - gradients[name]).abs().max().item() <= 1e-10 * scale, name
        elastic.zero_grad()


def every_network_starts_as_the_function_of_the_tiny_one(
    elastic: nn.Module, image: Tensor, sampled: list[list[int]]
) -> None:
    for training in (False, True):
        elastic = copy.deepcopy(elastic).train(training)
        for module in elastic.modules():
            module.training = training and not isinstance(module, nn.Dropout2d)
        with torch.no_grad():
            expected = run(elastic, image)
            for widths in sampled:
                with elastic.elastic.at(widths):
                    for ours, theirs in zip(run(elastic, image), expected, strict=True):
                        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def sorting_changes_nothing(elastic: nn.Module, image: Tensor) -> None:
    elastic = copy.deepcopy(elastic).eval()
    with torch.no_grad(), elastic.elastic.at(elastic.elastic.largest()):
        expected = run(elastic, image)
        sort_hidden_channels(elastic)
        for ours, theirs in zip(run(elastic, image), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def run(network: nn.Module, image: Tensor) -> list[Tensor]:
    torch.manual_seed(1)  # dropout
    return network(image)


def loss_of(outputs: list[Tensor]) -> Tensor:
    """Depends on every element of every output."""
    return sum((output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() for output in outputs)
