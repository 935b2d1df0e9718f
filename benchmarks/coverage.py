"""Coverage: makes every convolutional backbone of MMDetection and MMPretrain elastic and checks that it stays correct.

    python benchmarks/coverage.py                                  # all of them: the table
    python benchmarks/coverage.py --json out.json mmdet.ResNet "mmpretrain.Shuffle*"

Each backbone is made elastic behind a small reader outside of it, so that its outputs may be widened too. It is held
against plain networks, built independently at the sampled widths, in float64: the base mode bit for bit, the gradients,
which parameters a gradient reaches, a whole step with in-place distillation, the tiny network's checkpoint, the sorting
of channels. A backbone counts as

* augmented: at least half of its channels take other widths, and everything holds;
* held: fewer do (the rest stays at base width, with the reason), or it is refused with a reason; it still trains right;
* wrong: something does not hold.

*start* is how far the outputs of the largest network are from the tiny one's before training, over the largest of them.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
# This folder must not stay on the path: another package imports one named "coverage".
sys.path[:] = [str(ROOT), str(ROOT / "tests")] + [p for p in sys.path if Path(p).resolve() != ROOT / "benchmarks"]

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from networks import plain_at, randomise, scatter_gradients
from torch import Tensor, nn

from benchmarks.backbones import CONVOLUTIONAL, IMAGE, LEFT_OUT, MIXES_CHANNELS, build, registered
from mmnetaug import NetAugOptimWrapper
from mmnetaug.elastic import Elastic, TraceError, base_state_dict, fill_new_channels, make_elastic, sort_hidden_channels
from mmnetaug.models.tensor_mode import flatten_tensors

WIDTH, EXPAND = [1, 1.5], [1, 1.5]
TOLERANCE = 1e-10
EMPTY = dict(groups=0, augmented=0, share=0.0, error=0.0, start=0.0)  # a row of a backbone that cannot be checked


class WithReader(nn.Module):
    """A backbone, and one layer behind each of its outputs that reads it."""

    def __init__(self, backbone: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            self.backbone.norm_eval = False  # mmdet's ResNets would keep their norms in evaluation, and channels dead
            for module in self.backbone.modules():
                if not isinstance(module, nn.Conv2d | nn.Linear):  # others leave their weights uninitialised
                    for weight in module.parameters(recurse=False):
                        if weight.dim() > 1:
                            weight.uniform_(-1, 1).mul_((3 / weight[0].numel()) ** 0.5)
        self.backbone.eval()
        with torch.no_grad():
            outputs = flatten_tensors(self.backbone(image))
        self.readers = nn.ModuleList(
            nn.Conv2d(output.shape[1], 3, 1) if output.dim() == 4 else nn.Linear(output.shape[-1], 3)
            for output in outputs
        )
        self.train()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = flatten_tensors(self.backbone(image))
        extra = len(outputs) - len(self.readers)  # auxiliary classifiers come first, in training alone
        read = [reader(output) for reader, output in zip(self.readers, outputs[extra:], strict=True)]
        return (*outputs[:extra], *read)


class Classifier(BaseModel):
    """Tells three classes apart by the mean of the last outputs over levels and places."""

    def __init__(self, network: WithReader) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Identity()  # distillation compares its output

    def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        torch.manual_seed(1)  # dropout
        outputs = self.network(inputs)[-len(self.network.readers) :]
        means = [x.mean((2, 3)) if x.dim() == 4 else x.reshape(len(x), -1, 3).mean(1) for x in outputs]
        self.logits = self.head(sum(means))
        # TridentNet's branches make a batch of their own each in training
        return dict(loss=F.cross_entropy(self.logits, torch.arange(len(self.logits)) % 3))


def loss_of(model: nn.Module, image: Tensor) -> Tensor:
    """A loss that depends on every element of every output, with the same random numbers (dropout) every time."""
    torch.manual_seed(1)
    return sum((output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() for output in model(image))


def check(name: str, variant: str) -> dict:
    """Makes one backbone elastic and checks it.

    Returns:
        A row of the table; ``wrong`` lists what does not hold.
    """
    size = IMAGE.get(f"{name} {variant}".strip(), IMAGE.get(name, 64))
    channels = 1 if name.endswith("LeNet5") else 3
    image = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    plain = WithReader(build(name, variant), image)
    elastic = copy.deepcopy(plain)
    row = EMPTY | dict(backbone=f"{name} {variant}".strip(), held={}, wrong=[])
    try:
        space = make_elastic(elastic, lambda m, x: m(x), (channels, size, size), WIDTH, EXPAND, scope="backbone")
    except TraceError as error:
        return row | dict(held={str(error): 1})
    reasons = [group.held_reason for group in space.groups if group.held_reason]
    held = Counter(re.sub(r" in backbone\S*|backbone\.\S* ", "", reason) for reason in reasons)
    row |= dict(
        groups=len(space.groups),
        augmented=len(space.groups) - len(reasons),
        share=_share(elastic),
        held=dict(held.most_common()),
    )
    space.driven = True
    row["start"] = _start(elastic, image)
    fill_new_channels(elastic, preserving=False)  # weights of zero would hide mistakes
    randomise(elastic)
    checks = {
        "base": lambda: _base(elastic, plain, image),
        "gradients": lambda: _gradients(elastic, plain, image, row),
        "reached": lambda: _reached(elastic, image),
        "sorting": lambda: _sorting(elastic, image),
    }
    if row["augmented"]:
        checks["distillation"] = lambda: _distilled(elastic, plain, image)
    if row["backbone"] not in MIXES_CHANNELS:
        checks["subnetwork"] = lambda: _subnetwork(elastic, plain, image)
    plain.load_state_dict(base_state_dict(elastic), strict=True)
    for invariant, run in checks.items():
        try:
            run()
        except AssertionError as problem:
            row["wrong"].append(f"{invariant}: {problem}")
        except Exception as problem:
            row["wrong"].append(f"{invariant}: {type(problem).__name__}: {problem}")
    return row


def _share(elastic: nn.Module) -> float:
    """Share of the channels that convolutions and linear layers make which can take other widths."""
    total = augmented = 0
    for layer in elastic.backbone.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            made = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            axes = layer.elastic_axes.get("weight", ()) if isinstance(layer, Elastic) else ()
            runs = [run for axis in axes if axis.dim == made for run in axis.runs]
            augmented += sum(run.base_width for run in runs if len(run.widths) > 1)
            total += sum(run.base_width for run in runs) or layer.weight.shape[made]
    return augmented / total


def _start(elastic: nn.Module, image: Tensor) -> float:
    """How far the largest network's outputs are from the tiny one's before training, over the largest output."""
    elastic, image, found = copy.deepcopy(elastic).double(), image.double(), []
    for widths in (elastic.elastic.base(), elastic.elastic.largest()):
        with torch.no_grad(), elastic.elastic.at(widths):
            torch.manual_seed(1)
            found.append(torch.cat([output.flatten() for output in elastic(image)]))
    return ((found[0] - found[1]).abs().max() / found[0].abs().max()).item()


def _base(elastic: nn.Module, plain: nn.Module, image: Tensor) -> None:
    """Invariants 1 and 10: the tiny state dict loads strictly, and both networks compute the same, bit for bit."""
    elastic, plain = copy.deepcopy(elastic), copy.deepcopy(plain)
    for training in (False, True):
        elastic.train(training), plain.train(training)
        with torch.no_grad():
            torch.manual_seed(1)
            ours = elastic(image)
            torch.manual_seed(1)
            theirs = plain(image)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), f"outputs differ ({training=})"
    state = plain.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in base_state_dict(elastic).items()), "statistics differ"


def _gradients(elastic: nn.Module, plain: nn.Module, image: Tensor, row: dict) -> None:
    """Invariant 2: gradients at base, sampled and largest widths are those of independent plain networks."""
    elastic, plain, image = copy.deepcopy(elastic).double(), copy.deepcopy(plain).double(), image.double()
    space = elastic.elastic
    for widths in (space.base(), space.sample(0, 1), space.largest()):
        network = plain_at(elastic, plain, widths)
        elastic.zero_grad()
        with space.at(widths):
            loss_of(elastic, image).backward()
        loss_of(network, image).backward()
        expected = scatter_gradients(elastic, network, widths)
        scale = max(gradient.abs().max().item() for gradient in expected.values())
        for name, parameter in elastic.named_parameters():
            got = 0 if parameter.grad is None else parameter.grad
            row["error"] = max(row["error"], (got - expected[name]).abs().max().item() / scale)
    assert row["error"] <= TOLERANCE, f"gradients differ by {row['error']:.1e}"


def _distilled(elastic: nn.Module, plain: nn.Module, image: Tensor) -> None:
    """A step with in-place distillation changes each parameter by the gradients of two independent plain networks."""
    elastic, plain, image = copy.deepcopy(elastic).double(), copy.deepcopy(plain).double(), image.double()
    widths, weight = elastic.elastic.sample(0, 0), 0.3
    large, small = (Classifier(plain_at(elastic, plain, w)) for w in (widths, elastic.elastic.base()))
    loss = large(image)["loss"]
    loss.backward()
    teacher = large.logits.detach().softmax(1)
    loss = small(image)["loss"]
    divergence = (teacher * (teacher / small.logits.softmax(1)).log()).sum() / len(teacher)
    ((1 - weight) * loss + weight * divergence).backward()
    expected = scatter_gradients(elastic, small.network, elastic.elastic.base())
    for name, gradient in scatter_gradients(elastic, large.network, widths).items():
        expected[name] = expected[name] + gradient

    model = Classifier(elastic)
    model.elastic = elastic.elastic
    before = {name: parameter.detach().clone() for name, parameter in elastic.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapper = NetAugOptimWrapper(optimizer=optimizer, distill=dict(weight=weight))
    with wrapper.optim_context(model):
        losses = model(image)
    wrapper.update_params(model.parse_losses(losses)[0])
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    for name, parameter in elastic.named_parameters():
        error = (before[name] - parameter.detach() - expected[name]).abs().max().item() / scale
        assert error <= TOLERANCE, f"{name} is changed by another gradient ({error:.1e})"


def _reached(elastic: nn.Module, image: Tensor) -> None:
    """Invariant 3: at the largest widths every parameter learns, at base widths no additional channel does."""
    elastic, image = copy.deepcopy(elastic).double(), image.double()
    space = elastic.elastic

    def additional() -> dict[str, tuple[bool, bool]]:
        """Per elastic parameter: whether its additional channels get a gradient, and whether the tiny network's do."""
        elastic.zero_grad()
        loss_of(elastic, image).backward()
        gradients = {}
        for path, layer in elastic.named_modules():
            for name in getattr(layer, "elastic_axes", {}):
                parameter = layer._parameters.get(name)
                if parameter is not None and parameter.requires_grad:
                    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
                    tiny = bool(gradient[layer.base_block(name)].any())
                    gradient[layer.base_block(name)] = 0
                    gradients[f"{path}.{name}"] = bool(gradient.any()), tiny
        return gradients

    missed: set[str] | None = None
    for seed in range(8):  # a ReLU behind one or two channels (a squeeze) may be dead by chance, but not every time
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in elastic.parameters() if seed else ():
                signs = torch.randint(0, 2, (len(parameter),), generator=generator) * 2 - 1
                parameter.mul_(signs.view(-1, *[1] * (parameter.dim() - 1)))
        with space.at(space.largest()):
            dead = {name for name, (learns, tiny) in additional().items() if tiny and not learns}
        missed = dead if missed is None else missed & dead
        if not missed:
            break
    assert not missed, f"no gradient reaches {sorted(missed)}"
    learning = [name for name, (learns, _) in additional().items() if learns]
    assert not learning, f"a gradient reaches {learning}, which were not sampled"


def _subnetwork(elastic: nn.Module, plain: nn.Module, image: Tensor) -> None:
    """Silence additional channels where they are made: the tiny network must remain, whatever reads them.

    Needs nothing of how channels are stored: what reads the wrong branch behind a concatenation reads silence. Layer
    and group norms mix channels by their nature, so they are replaced by their affine part for this test.
    """
    elastic, plain, image = copy.deepcopy(elastic).double().eval(), copy.deepcopy(plain).double().eval(), image.double()
    with torch.no_grad():
        for layer in elastic.modules():
            for name, axes in getattr(layer, "elastic_axes", {}).items():
                makes = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
                for axis in axes:
                    if name in layer._parameters and (name != "weight" or axis.dim == makes):
                        layer.stored(name).narrow(axis.dim, axis.base, axis.stored - axis.base).zero_()
    space = elastic.elastic
    functional = torch.nn.functional
    with (
        torch.no_grad(),
        mock.patch.object(functional, "layer_norm", lambda x, size, weight, bias, eps: x * weight + bias),
        mock.patch.object(
            functional, "group_norm", lambda x, groups, w, b, eps: x * w.view(1, -1, 1, 1) + b.view(1, -1, 1, 1)
        ),
    ):
        expected = plain(image)
        for widths in (space.largest(), space.sample(0, 1)):
            with space.at(widths):
                got = elastic(image)
            for one, other in zip(got, expected, strict=True):
                error = (one - other).abs().max() / other.abs().max()
                assert error < 1e-9, f"the tiny network is no subnetwork of the augmented one ({error:.1e})"


def _sorting(elastic: nn.Module, image: Tensor) -> None:
    """Invariant 9: sorting hidden channels changes no output of the largest network beyond rounding."""
    elastic, image = copy.deepcopy(elastic).double().eval(), image.double()
    with torch.no_grad(), elastic.elastic.at(elastic.elastic.largest()):
        before = elastic(image)
        sort_hidden_channels(elastic)
        for one, other in zip(elastic(image), before, strict=True):
            error = (one - other).abs().max() / other.abs().max()
            assert error < 1e-9, f"sorting changes the largest network's outputs by {error:.1e}"


def verdict(row: dict) -> str:
    """What a row counts as."""
    if row["wrong"]:
        return "wrong"
    return "augmented" if row["share"] >= 0.5 else "held"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["*"], help="backbones to check (patterns); all by default")
    parser.add_argument("--json", metavar="PATH", help="write totals and rows here; '-' for standard output only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    unknown = registered() - CONVOLUTIONAL.keys() - LEFT_OUT.keys()
    if unknown:
        parser.error(f"backbones.py says nothing about {sorted(unknown)}")
    todo = [
        (name, variant)
        for name in sorted(CONVOLUTIONAL)
        for variant in CONVOLUTIONAL[name]
        if any(fnmatch.fnmatch(name, pattern) for pattern in args.names)
    ]
    if not todo:
        parser.error(f"no convolutional backbone is named {' or '.join(args.names)}")
    report = sys.stderr if args.json == "-" else sys.stdout
    rows, started = [], time.time()
    for number, (name, variant) in enumerate(todo):
        begun = time.time()
        try:
            row = check(name, variant)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            row = EMPTY | dict(backbone=f"{name} {variant}".strip(), held={}, wrong=[problem])
        row |= dict(result=verdict(row), seconds=round(time.time() - begun, 1))
        rows.append(row)
        left = (time.time() - started) / (number + 1) * (len(todo) - number - 1)
        print(
            f"{row['backbone']:34} {row['result']:9} {row['augmented']:3}/{row['groups']:3} groups "
            f"{row['share']:4.0%} of channels  error {row['error']:.0e}  start {row['start']:.0e}  "
            f"{row['seconds']:5.1f} s  [{left:4.0f} s left]",
            file=report,
        )
        for reason, count in row["held"].items():
            print(f"      {count} held: {reason}", file=report)
        for problem in row["wrong"]:
            print(f"      WRONG {problem[:300]}", file=report)
        report.flush()
    counted = Counter(row["result"] for row in rows)
    totals = dict(backbones=len(rows), **{result: counted[result] for result in ("augmented", "held", "wrong")})
    print(", ".join(f"{count} {result}" for result, count in totals.items()), file=report)
    if args.json:
        text = json.dumps(dict(**totals, rows=rows), indent=1)
        print(text) if args.json == "-" else Path(args.json).write_text(text + "\n")
    sys.exit(bool(counted["wrong"]))


if __name__ == "__main__":
    main()
