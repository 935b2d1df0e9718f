"""What the trace makes of code that divides, folds or counts channels: followed where sure, held where not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmnetaug.elastic import TraceError, make_elastic


def conv(inputs: int, outputs: int, kernel: int = 1, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **kwargs)


class Net(nn.Module):
    """stem (16 channels) -> what a subclass does -> head, whose outputs stay."""

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 16), conv(16, 16), conv(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)))


class Chunk(Net):
    """C2f: the halves of a chunk are equally wide, whatever else is concatenated behind them."""

    def __init__(self) -> None:
        super().__init__(features=24)
        self.body = conv(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        parts = list(x.chunk(2, 1))
        return torch.cat([*parts, self.body(parts[-1])], 1)


class SplitByAttribute(Net):
    """Res2Net: the size of the parts is a number that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4

    def middle(self, x: Tensor) -> Tensor:
        a, b, c, d = torch.split(self.body(x), self.width, 1)
        return torch.cat([a, b.tanh(), c + b, d], 1)


class SplitInHalves(Net):
    def middle(self, x: Tensor) -> Tensor:
        x = self.body(x)
        half = x.shape[1] // 2
        return torch.cat([x[:, :half].tanh(), x[:, half:]], 1)


class SplitByNumber(Net):
    """Wider, this runs and gives the right shape, but divides the channels elsewhere."""

    def middle(self, x: Tensor) -> Tensor:
        return self.body(torch.cat([x[:, :8].tanh(), x[:, 8:]], 1))


class Shuffle(Net):
    """Interleaving puts the tiny network's channels between others."""

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return self.body(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class Heads(Net):
    """Attention of heads that grow: channels fold into (heads, channels of a head) and back."""

    def middle(self, x: Tensor) -> Tensor:
        x = self.body(x)
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h * w)
        return (torch.softmax(x.transpose(2, 3) @ x, -1).unsqueeze(2) * x.unsqueeze(-2)).sum(-1).view(n, c, h, w)


class Flatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 16), conv(16, 4), nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).flatten(1))


class MoreGroupsOut(Net):
    """A grouped convolution that makes more channels than it reads keeps its groups and widens each."""

    def __init__(self) -> None:
        super().__init__(features=32)
        self.body = conv(16, 32, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        return self.body(x)


class TrainingOnly(Net):
    """Its auxiliary head is not in the graph of the evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = conv(16, 7)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body(self.stem(x))
        return [self.head(x), self.auxiliary(x)] if self.training else [self.head(x)]

    def middle(self, x: Tensor) -> Tensor:
        return self.body(x)


class Cast(Net):
    def middle(self, x: Tensor) -> Tensor:
        return self.body(x.float())


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


class BlackBox(Net):
    """One part of it branches on values: no trace can be made of that, but of all the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = Branch()

    def middle(self, x: Tensor) -> Tensor:
        return self.branch(self.body(x))


def elastic(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)

    def forward(model: nn.Module, x: Tensor) -> list[Tensor]:
        out = model(x)
        return out if isinstance(out, list) else [out]

    make_elastic(network, forward, (3, 8, 8), width=[1, 1.5, 2], expand=[1, 1.5, 2])
    return network


@pytest.mark.parametrize(
    "network, held",
    [
        (Chunk, {}),
        (Cast, {}),
        (SplitByAttribute, {}),
        (SplitInHalves, {}),
        (SplitByNumber, {"stem": "divides them otherwise"}),
        (Shuffle, {"stem": "channels are folded"}),
        (Heads, {}),
        (Flatten, {"body": "channels are folded"}),
        (MoreGroupsOut, {}),
        (TrainingOnly, {"body": "fails at another width"}),
        (BlackBox, {"body": "branch cannot be traced"}),
    ],
)
def test_what_is_followed_and_what_is_held(network, held):
    model = elastic(network())
    reasons = {group.name: group.held_reason for group in model.elastic.groups if group.name != "head"}
    assert {name for name, reason in reasons.items() if reason} == set(held), reasons
    for name, reason in held.items():
        assert reason in reasons[name]


@pytest.mark.parametrize(
    "network", [Chunk, SplitByAttribute, SplitInHalves, SplitByNumber, Shuffle, Heads, Flatten, MoreGroupsOut, BlackBox]
)
def test_every_width_runs_and_holds_the_tiny_network(network):
    torch.manual_seed(0)
    plain = network().eval()
    model = elastic(network()).eval()
    model.load_state_dict(plain.state_dict())
    for layer in model.modules():  # silence the additional channels where they are made
        for name, axes in getattr(layer, "elastic_axes", {}).items():
            if axes[0].dim == 0:
                layer.stored(name).detach()[axes[0].base :] = 0
    image = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = plain(image)
        assert torch.equal(model(image), expected)
        for iteration in range(20):
            with model.elastic.at(model.elastic.sample(0, iteration)):
                torch.testing.assert_close(model(image), expected)


def test_modules_are_left_as_they_were():
    model = BlackBox().train()
    model.body.eval()
    elastic(model)
    assert [module.training for module in (model, model.stem, model.body, model.head)] == [True, True, False, True]
    assert "forward" not in vars(model.branch)


def test_a_network_that_branches_on_values_itself_is_refused():
    class Branching(Net):
        def middle(self, x: Tensor) -> Tensor:
            return self.body(x) if x.sum().item() > 0 else x

    with pytest.raises(TraceError, match="cannot trace Branching"):
        elastic(Branching())
