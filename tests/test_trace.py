"""What the trace makes of code that divides, folds or counts channels: followed where sure, held where not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmnetaug.elastic import TraceError, base_state_dict, make_elastic, plan, tiny_statistics_kept
from mmnetaug.elastic.graph import black_box


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
        self.width = self.planes = 4  # the other is not read

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


class NormByHand(Net):
    """Wider, this runs and gives the right shape, but takes two channels for one."""

    def middle(self, x: Tensor) -> Tensor:
        y = x.view(x.shape[0], 16, -1)
        return self.body((y - y.mean(-1, keepdim=True)).reshape_as(x))


class Values(Net):
    """The values of this attention are widened apart from what they are folded like."""

    def middle(self, x: Tensor) -> Tensor:
        values = self.body(x).flatten(2)
        return x + self.last(values.softmax(-1).reshape(x.shape))

    def __init__(self) -> None:
        super().__init__()
        self.last = conv(16, 16)


class SplitByOneOfTwo(SplitByAttribute):
    """Which of the equal numbers sizes the parts is not to be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 4

    def middle(self, x: Tensor) -> Tensor:
        return super().middle(x) / self.temperature


class ComputedWeight(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.utils.parametrizations.weight_norm(self.body)

    def middle(self, x: Tensor) -> Tensor:
        return self.body(x)


class Query(Net):
    """What the convolution makes is added to the learned query that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.rand(1, 16, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return x * (self.query + self.body(self.query).relu())


class Common(Net):
    """Operators of common layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.InstanceNorm2d(16, affine=True), nn.Dropout2d(0.1)

    def middle(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.body(x)))
        gate = x.amax(1, keepdim=True).sigmoid()
        return (x.flip(3) * gate.expand_as(x)).transpose(2, 3) + 0.5


class Layer(nn.Module):
    """Parameters of its own: a kernel, a matrix and a scale called ``weight``."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.matrix = nn.Parameter(torch.rand(16, 16, 1, 1)), nn.Parameter(torch.rand(16, 16))
        self.weight = nn.Parameter(torch.rand(1, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.kernel) * self.weight
        return (x.permute(0, 2, 3, 1) @ self.matrix).permute(0, 3, 1, 2)


class OwnLayer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = Layer()

    def middle(self, x: Tensor) -> Tensor:
        return self.body(x)


class Remembering(Net):
    """Keeps what it computes at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.grids, self.grid, self.ready = {}, None, False
        self.register_buffer("scale", torch.linspace(0.5, 1, 16).view(1, 16, 1, 1), persistent=False)

    def middle(self, x: Tensor) -> Tensor:
        if x.shape[-1] not in self.grids:
            self.grid = self.grids[x.shape[-1]] = torch.arange(x.shape[-1]).float()
        self.ready = True
        return self.body(x * self.scale + self.grids[x.shape[-1]] + self.grid)


class Statistics(nn.Module):
    """A batch norm by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.detach().mean((0, 2, 3))
        return x - self.mean.view(1, -1, 1, 1)


class OwnStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Statistics()

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x))


class Written(Net):
    """Wider, this runs and gives the right shapes, but computes something else: what a subclass does with width 16."""

    def middle(self, x: Tensor) -> Tensor:
        return self.body(self.odd(x, x.shape[1]))


class BranchOnWidth(Written):
    def odd(self, x: Tensor, width: int) -> Tensor:
        return -x if width > 16 else x


class LongerGraph(Net):
    """The same operators, and one behind them."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.head(self.body(x))
        return -y if x.shape[1] > 16 else y

    def middle(self, x: Tensor) -> Tensor:
        return self.body(x)


class TrainingBranch(Written):
    def odd(self, x: Tensor, width: int) -> Tensor:
        return -x if self.training and width > 16 else x


class EvaluationBranch(Written):
    def odd(self, x: Tensor, width: int) -> Tensor:
        return x if self.training else torch.cat(x.split((8, 8), 1), 1)


class TimesWidth(Written):
    def odd(self, x: Tensor, width: int) -> Tensor:
        return x * width


class OverRoot(Written):
    def odd(self, x: Tensor, width: int) -> Tensor:
        return x / width**0.5


class AddedTimesWidth(Written):
    def odd(self, x: Tensor, width: int) -> Tensor:
        return torch.add(x, x.tanh(), alpha=width)


class ConstantOfWidth(Written):
    def odd(self, x: Tensor, width: int) -> Tensor:
        return x + torch.tensor(1 / width)


class OtherOrder(Written):
    """The same operators on other tensors."""

    def odd(self, x: Tensor, width: int) -> Tensor:
        a, b = x.tanh(), x.sigmoid()
        return b - a if width > 16 else a - b


class OtherWeight(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other = conv(16, 16)

    def middle(self, x: Tensor) -> Tensor:
        one, two = (self.other, self.body) if x.shape[1] > 16 else (self.body, self.other)
        return one(x).relu() + two(x)


class OtherType(Written):
    def odd(self, x: Tensor, width: int) -> Tensor:
        return x.to(torch.float64 if width > 16 else torch.float32).to(torch.float32)


class OtherOffset(Written):
    """Eight channels are skipped at every width."""

    def odd(self, x: Tensor, width: int) -> Tensor:
        return torch.cat([x[:, : width // 2], x[:, 8 : 8 + width // 2].tanh()], 1)


class OtherDilation(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = conv(16, 16, 3)

    def middle(self, x: Tensor) -> Tensor:
        reach = x.shape[1] // 16
        return nn.functional.conv2d(x, self.body.weight, self.body.bias, padding=reach, dilation=reach)


class OtherShift(Written):
    def odd(self, x: Tensor, width: int) -> Tensor:
        return x.roll(width, 3)


class WrittenGroups(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(16))

    def middle(self, x: Tensor) -> Tensor:
        return self.body(nn.functional.group_norm(x, 4, self.scale))


class HalvesInGroups(nn.Module):
    """Twelve channels in groups of four, and in halves: they are held at twelve, which are no groups in each half."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.body, self.norm = conv(3, 12), conv(6, 6), conv(12, 12), nn.GroupNorm(3, 12)
        self.head = conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = x.chunk(2, 1)
        return self.head(x + self.norm(self.body(torch.cat([a, self.part(b)], 1))))


class Scaled(Net):
    """Numbers that follow no width are no reason."""

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = self.body(x[:, :c] / 16 + 0.5)
        a, b = x[:, : c // 2], x[:, -(c // 2) :]
        return torch.cat([a, b.reshape(n, c // 2, h * w).unflatten(2, (h, w))], 1).expand(n, c, h, w)


class NeedsValuesInTraining(Net):
    """Training cannot be run on shapes alone; evaluation can, and is looked at."""

    def middle(self, x: Tensor) -> Tensor:
        if self.training and x.sum().item() > 0:
            x = x + 1
        return self.body(x if self.training else torch.cat(x.split((8, 8), 1), 1))


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
        (SplitByNumber, {"stem": "splits channels differently"}),
        (Shuffle, {"stem": "channels are folded"}),
        (Heads, {}),
        (Flatten, {"body": "channels are folded"}),
        (MoreGroupsOut, {}),
        (TrainingOnly, {"body": "fails at another width"}),
        (BlackBox, {"body": "branch cannot be traced"}),
        (NormByHand, {"stem": "splits channels differently"}),
        (Values, {"stem": "fails at another width", "body": "fails at another width"}),
        (SplitByOneOfTwo, {"body": "fails at another width"}),
        (ComputedWeight, {"stem": "meets a fixed number", "body": "is computed, not stored"}),
        (Query, {}),
        (Common, {}),
        (OwnLayer, {}),
        (Remembering, {}),
        (OwnStatistics, {}),
        (BranchOnWidth, {"stem": "runs other operators at another width"}),
        (LongerGraph, {"stem": "runs other operators at another width"}),
        (TrainingBranch, {"stem": "runs other operators at another width"}),
        (EvaluationBranch, {"stem": "fails at another width"}),
        (TimesWidth, {"stem": "runs other operators at another width, from aten.mul"}),
        (OverRoot, {"stem": "runs other operators at another width, from aten.div"}),
        (AddedTimesWidth, {"stem": "runs other operators at another width, from aten.add"}),
        (ConstantOfWidth, {"stem": "other constants"}),
        (OtherOrder, {"stem": "passes other arguments at another width: self of sub"}),
        (OtherWeight, {"stem": "other arguments at another width: weight of conv2d", "body": "weight of conv2d"}),
        (OtherType, {"stem": "at another width"}),
        (OtherOffset, {"stem": "at another width"}),
        (OtherDilation, {"stem": "passes other arguments", "body": "padding of conv2d"}),
        (OtherShift, {"stem": "passes other arguments at another width: shifts of roll"}),
        (WrittenGroups, {"stem": "passes other arguments at another width: num_groups of group_norm"}),
        (HalvesInGroups, {"stem": "do not divide into groups"}),
        (Scaled, {}),
        (NeedsValuesInTraining, {"stem": "fails at another width"}),
    ],
)
def test_what_is_followed_and_what_is_held(network, held):
    model = elastic(network())
    reasons = {group.name: group.held_reason for group in model.elastic.groups if group.name != "head"}
    assert {name for name, reason in reasons.items() if reason} == set(held), reasons
    for name, reason in held.items():
        assert reason in reasons[name]


@pytest.mark.parametrize(
    "network",
    [
        *(Chunk, SplitByAttribute, SplitInHalves, SplitByNumber, Shuffle, Heads, Flatten, MoreGroupsOut, BlackBox),
        *(NormByHand, Values, SplitByOneOfTwo, Common, Remembering, OwnStatistics, HalvesInGroups),
    ],
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


@pytest.mark.parametrize(
    "network",
    [
        *(OwnLayer, Query, Remembering, OwnStatistics, HalvesInGroups),
        *(BranchOnWidth, LongerGraph, EvaluationBranch, TimesWidth, OverRoot, AddedTimesWidth, ConstantOfWidth),
        *(OtherOrder, OtherWeight, OtherOffset, OtherDilation, WrittenGroups),
    ],
)
def test_every_width_starts_as_the_function_of_the_tiny_network(network):
    torch.manual_seed(0)
    plain = network().eval()
    model = elastic(network()).eval()
    model.load_state_dict(plain.state_dict())
    image = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = plain(image)
        for widths in (model.elastic.base(), model.elastic.largest(), model.elastic.sample(0, 1)):
            with model.elastic.at(widths):
                torch.testing.assert_close(model(image), expected)
    if network is OwnLayer:  # what multiplies new channels is not what reads them
        assert model.body.stored("weight").detach()[:, 16:].abs().min() > 0


def test_caches_hold_nothing_of_the_trace():
    model = elastic(Remembering())
    assert not model.grids and model.grid is None and not model.ready
    assert type(model(torch.rand(2, 3, 8, 8)).detach()) is Tensor
    assert model.state_dict().keys() == base_state_dict(model).keys()


def test_parameters_keep_their_hooks_and_attributes():
    plain, model = Cast(), Cast()
    model.load_state_dict(plain.state_dict())
    for network in (plain, model):
        network.body.weight.register_hook(lambda gradient: gradient * 0.1)
        network.body.weight._no_weight_decay = True
    elastic(model)
    image = torch.rand(2, 3, 8, 8)
    for network in (plain, model):
        network(image).sum().backward()
    gradient = model.body.stored("weight").grad
    assert torch.equal(gradient[:16, :16], plain.body.weight.grad)
    assert model.body.stored("weight")._no_weight_decay


def test_statistics_kept_by_hand_follow_the_base_pass_alone():
    torch.manual_seed(0)
    plain, model = OwnStatistics().train(), OwnStatistics().train()
    model.load_state_dict(plain.state_dict())
    elastic(model)
    for seed in range(3):
        image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        plain(image)
        model(image)
        before = model.norm.stored("mean").clone()
        for widths in (model.elastic.sample(0, seed), model.elastic.largest()):
            with model.elastic.at(widths), tiny_statistics_kept([model.norm]):
                model(image)
        torch.testing.assert_close(model.norm.mean, plain.norm.mean)
        assert model.norm.stored("mean").shape == (32,)
        assert not torch.equal(model.norm.stored("mean")[16:], before[16:])


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


def test_a_network_that_does_not_run_is_refused_with_its_own_error():
    with pytest.raises(TraceError, match=r"Cast itself fails on images of shape \(2, 3, 8, 8\): .* expected input"):
        elastic(Cast(features=17))


@pytest.mark.parametrize(
    "network, module, function",
    [
        (Common, plan, "count_at_width"),  # while wider networks run
        (BlackBox, black_box, "black_box"),  # while black boxes are found and exported
    ],
)
def test_a_fault_of_our_own_is_an_error_and_no_reason_to_hold(network, module, function, monkeypatch):
    monkeypatch.setattr(module, function, None)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        elastic(network())
