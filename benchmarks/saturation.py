"""Plain training, NetAug and in-place distillation where a tiny network under-fits, each at its own best learning rate.

    python benchmarks/saturation.py run --cifar data/cifar10 --seeds 0 1 2     # resumes: finished runs are skipped
    python benchmarks/saturation.py report                            # docs/saturation.md and docs/saturation.png

The protocol, fixed before the runs:

1. *Data.* CIFAR-10 at 32 pixels. The last 500 training images of each class are held out for choosing; every run trains
   on the other 45 000. Test images are measured once, at the end of each run, and choose nothing.
2. *Saturation.* Plain training is run for 10, 20, 40 and more epochs, doubled until it gains less than 0.3 points of
   held-out accuracy. The first number of epochs that doubling does not improve is what all methods are compared at.
3. *Rate.* For every method the peak learning rate with the best held-out accuracy of seed 0, in steps of factor 2 from
   0.4 until the best one has been compared with its half and its double. The other seeds run at this rate alone.
4. *Claims* are differences from plain training in test accuracy, each method at its own rate, paired by seed, with 95 %
   intervals (Student's t) over eight seeds: for as many epochs; and against plain training that takes as much CPU time.
   A *wide teacher* is a frozen, plainly trained network 2.8 times as wide, of 20 epochs. It adds its KL divergence to
   the cross-entropy, so the same learning rate makes steps twice as long; it has a search for its rate of its own. The
   runs' minutes leave out the wide network's, which are in a row of their own. With them, 40 epochs take a little less
   than 96 epochs of plain training (``EQUAL_TIME``). Both are also compared at 96 epochs.
5. *Gate.* The largest network that is sampled in the last epoch, its batch norms re-estimated on 50 batches: a teacher
   that is not ahead of the tiny network has nothing to teach.

All runs: batch 128, SGD with Nesterov momentum 0.9, weight decay 4e-5 (none on norms and biases), two epochs of
warm-up, cosine to 0, padding, crops and flips. NetAug: the authors' factors, sorting, width augmentation off in the
second half (but in variants *to the end*).
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # in place of benchmarks/, whose coverage.py numba would take for the package of that name

import torch
from matplotlib.figure import Figure
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

import mmnetaug  # noqa: F401  (registers everything)
from benchmarks import records
from benchmarks.study_parts import InMemoryCifar10, crop_and_flip
from mmnetaug import NetAugOptimWrapper
from mmnetaug.elastic import Elastic, ElasticSpace, cut_channels, sort_hidden_channels
from mmnetaug.engine.optim_wrapper import _AugmentedPass
from mmnetaug.files import replaced_when_done
from mmnetaug.models.tensor_mode import tensor_forward
from mmnetaug.models.tinyml import BN, InvertedBottleneck
from mmnetaug.registry import MODELS, OPTIM_WRAPPERS

from mmcv.cnn import ConvModule  # isort: skip
from mmengine.model import BaseModule  # isort: skip
from mmengine.optim import OptimWrapper  # isort: skip
from mmpretrain.structures import DataSample  # isort: skip

RESULTS, PAGE = ROOT / "docs/saturation.csv", ROOT / "docs/saturation.md"
PLOT = ROOT / "docs/saturation.png"
READING = ROOT / "benchmarks/saturation_reading.md"  # written by hand
WIDE = ROOT / "work_dirs/saturation"  # trained wide networks
BATCH, WARM_UP = 128, 2
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


@MODELS.register_module()
class Nano(BaseModule):
    """Inverted bottlenecks too few and too narrow for CIFAR-10: 2 276 parameters, 2 446 with the classifier.

    Args:
        scale: Factor of all widths.
    """

    def __init__(self, scale: float = 1.0, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        act = dict(type="ReLU6")
        narrow, wide, last = round(4 * scale), round(8 * scale), round(16 * scale)
        self.stem = ConvModule(3, narrow, 3, stride=2, padding=1, norm_cfg=BN, act_cfg=act)
        self.stages = nn.ModuleList(
            InvertedBottleneck(before, 3 * before, after, 3, stride, "ReLU6", False, True, shortcut=stride == 1)
            for before, after, stride in ((narrow, narrow, 2), (narrow, wide, 2), (wide, wide, 1), (wide, wide, 1))
        )
        self.last = ConvModule(wide, last, 1, norm_cfg=BN, act_cfg=act)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Map images (N, 3, 32, 32) to features (N, 16, 4, 4), at scale 1."""
        x = self.stem(x)
        for block in self.stages:
            x = block(x)
        return (self.last(x),)


@OPTIM_WRAPPERS.register_module()
class LargestNetworkOptimWrapper(NetAugOptimWrapper):
    """Augments with the largest network in every second step (after AlphaNet's sandwich rule)."""

    def _widths(self, space: ElasticSpace, iteration: int) -> list[int]:
        return largest(space, self.width) if iteration % 2 else super()._widths(space, iteration)


@OPTIM_WRAPPERS.register_module()
class TeacherOnlyOptimWrapper(NetAugOptimWrapper):
    """Trains the additional channels alone by the augmented pass, which reaches the tiny network only as a teacher."""

    def _keeps_apart(self) -> bool:
        return True

    def _combine(self) -> None:
        gradients = dict(zip(self._parameters(), self._other_gradients, strict=True))
        for layer in self._model.modules():
            for name in layer.elastic_axes.keys() & layer._parameters.keys() if isinstance(layer, Elastic) else ():
                if (gradient := gradients[layer.stored(name)]) is not None:
                    gradient[layer.base_block(name)] = 0
        super()._combine()


@OPTIM_WRAPPERS.register_module()
class AveragedTeacherOptimWrapper(NetAugOptimWrapper):
    """Distils from an average of the weights over about 100 steps (EMA), at the widths of the augmented pass.

    Attributes:
        average: The averaged model; None makes it start anew.
    """

    average: nn.Module | None = None

    def _augmented_pass(self, args: tuple, kwargs: dict) -> _AugmentedPass:
        done = super()._augmented_pass(args, kwargs)
        if self.average is None:
            self.average = copy.deepcopy(self._model)
        with torch.no_grad():
            for averaged, current in zip(self.average.parameters(), self._model.parameters(), strict=True):
                averaged.lerp_(current, 0.01)
            with self.average.elastic.at(self._widths(self._spaces[0], self._inner_count)):
                done.outputs = {"head": (self.average(args[0], mode="tensor"),)}
        return done


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        settings: Of the optimizer wrapper; None trains plainly.
        begins: Share of the training after which there is any augmentation.
        width_until: Share of the training up to which there is width augmentation.
        width: Width factors.
        expand: Expand factors.
        cut_from: A wider network of ``NETWORKS``, trained plainly with the same seed. The tiny one starts from its most
            important channels.
        teacher: The same, as a frozen teacher of the tiny one: cross-entropy + KL divergence from its predictions.
    """

    settings: dict | None = None
    begins: float = 0.0
    width_until: float = 0.5
    width: tuple[float, ...] = (1, 1.8, 2.6)
    expand: tuple[float, ...] = (1, 1.6, 2.2, 2.8)
    cut_from: str | None = None
    teacher: str | None = None


METHODS = {
    "plain": Method(),
    "NetAug": Method({}),
    "distillation": Method(dict(distill=dict(weight=0.5))),
    "distillation, largest network often": Method(
        dict(type="mmnetaug.LargestNetworkOptimWrapper", distill=dict(weight=0.5))
    ),
    "distillation, additional channels alone": Method(
        dict(type="mmnetaug.TeacherOnlyOptimWrapper", distill=dict(weight=0.5))
    ),
    "distillation, normalized sum": Method(dict(distill=dict(weight=0.5), normalize=True)),
    "distillation, surgery": Method(dict(distill=dict(weight=0.5), surgery="all")),
    "distillation, expand only": Method(dict(distill=dict(weight=0.5)), width=(1,)),
    "distillation, factors up to 1.5": Method(
        dict(distill=dict(weight=0.5)), width=(1, 1.25, 1.5), expand=(1, 1.25, 1.5)
    ),
    "distillation, every second step": Method(dict(distill=dict(weight=0.5), interval=2)),
    "distillation, half of the batch": Method(dict(distill=dict(weight=0.5), share=0.5)),
    "distillation, last third": Method(dict(distill=dict(weight=0.5)), begins=2 / 3, width_until=1),
    "distillation, width to the end": Method(dict(distill=dict(weight=0.5)), width_until=1),
    "distillation, width to the end, additional channels alone": Method(
        dict(type="mmnetaug.TeacherOnlyOptimWrapper", distill=dict(weight=0.5)), width_until=1
    ),
    "distillation, width to the end, largest network often": Method(
        dict(type="mmnetaug.LargestNetworkOptimWrapper", distill=dict(weight=0.5)), width_until=1
    ),
    "distillation, width to the end, averaged teacher": Method(
        dict(type="mmnetaug.AveragedTeacherOptimWrapper", distill=dict(weight=0.5)), width_until=1
    ),
    "distillation, λ = 0.9": Method(dict(distill=dict(weight=0.9))),
    "NetAug, normalized sum": Method(dict(normalize=True)),
    "NetAug, surgery": Method(dict(surgery="all")),
    "plain, cut from nano x2.8": Method(cut_from="nano x2.8"),
    "wide teacher": Method(teacher="nano x2.8"),
    "wide teacher, cut from it": Method(teacher="nano x2.8", cut_from="nano x2.8"),
}
MAIN = ("plain", "NetAug", "distillation")
SEARCHED = (*MAIN, "wide teacher")
"""Methods with a search for the best rate of their own."""
NETWORKS = {
    "nano": ("mmnetaug.Nano", {}, 16, 40),
    "nano x2.8": ("mmnetaug.Nano", dict(scale=2.8), 45, 20),
    "micro": ("mmnetaug.TinyNet", dict(arch="micro"), 64, 100),
}
"""Backbone, its arguments, its output channels, and the epochs of a training."""
FIRST_RATE = 0.4
SEEDS = 8
EQUAL_TIME = {"nano": 96}
"""Epochs of plain training that take no less time than "wide teacher, cut from it" with its wide network."""
TO_PLOT = {"plain": 0.8, "wide teacher, cut from it": 0.4, "distillation": 0.8, "NetAug": 0.8}
"""Methods of the plot, at one rate each, on nano."""


def largest(space: ElasticSpace, width: bool) -> list[int]:
    """Widths of the largest network that is sampled with or without width factors."""
    return [max(widths) for widths in zip(*(space.sample(0, i, width) for i in range(200)), strict=True)]


class Data:
    """CIFAR-10 in memory, normalised, in channels-last, with labels as mmpretrain's heads want them."""

    def __init__(self, root: str) -> None:
        train, test = InMemoryCifar10(root, "train"), InMemoryCifar10(root, "test")
        labels = torch.as_tensor(train.labels)
        held_out = torch.cat([(labels == c).nonzero().flatten()[-500:] for c in range(10)])
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[held_out] = False
        self.images, self.labels = normalised(train.images[kept]), labels[kept]
        self.samples = [DataSample().set_gt_label(int(label)) for label in self.labels]
        self.held_out = normalised(train.images[held_out]), labels[held_out]
        self.test = normalised(test.images), torch.as_tensor(test.labels)

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, list[DataSample]]]:
        """One epoch of augmented training batches, the last incomplete one left out."""
        order = torch.randperm(len(self.images), generator=generator)
        for numbers in order[: len(order) // BATCH * BATCH].split(BATCH):
            yield crop_and_flip(self.images[numbers]), [self.samples[n] for n in numbers.tolist()]


def normalised(images: Tensor) -> Tensor:
    """Images of bytes as networks read them, in channels-last."""
    images = images.contiguous(memory_format=torch.channels_last).float()
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in percent, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        found = [model(part, mode="tensor").argmax(1) for part in images.split(500)]
    model.train()
    return 100 * (torch.cat(found) == labels).float().mean().item()


def classifier(network: str) -> dict:
    """The config of a plain classifier."""
    backbone, arguments, features, _ = NETWORKS[network]
    return dict(
        type="ImageClassifier",
        data_preprocessor=dict(type="ClsDataPreprocessor", num_classes=10),
        backbone=dict(type=backbone, **arguments),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=10, in_channels=features),
    )


def build(network: str, method: Method, seed: int = 0) -> nn.Module:
    """The classifier, elastic unless it is trained plainly, initialised, its teacher loaded."""
    model = classifier(network)
    if method.teacher:
        taught_by = dict(teacher=classifier(method.teacher), teacher_checkpoint=str(wide_path(method.teacher, seed)))
        model = dict(type="mmnetaug.Distilled", model=model, **taught_by)
    if method.settings is not None:
        model = dict(type="mmnetaug.NetAug", model=model, width=method.width, expand=method.expand, input_size=32)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        built = ROOT_MODELS.build(model)
    built.init_weights()
    return built.train()


def train(
    data: Data, network: str, method: Method, rate: float, epochs: int, seed: int, label: str
) -> dict[str, float]:
    """One run; returns its figures: accuracies in percent, the last epoch's mean training loss, minutes of CPU time."""
    torch.manual_seed(seed)
    if method.cut_from or method.teacher:
        train_wide(data, method.cut_from or method.teacher, seed)
        torch.manual_seed(seed)
    model = build(network, method, seed)
    if method.cut_from:
        cut(model, data, method.cut_from, seed)
    minutes, train_loss = fit(data, model, method, rate, epochs, seed, label)
    figures = dict(
        minutes=minutes,
        held_out=accuracy(model, *data.held_out),
        test=accuracy(model, *data.test),
        train_loss=train_loss,
    )
    if method.settings is not None:
        figures["largest"] = accuracy_of_largest(model, data, width=method.width_until == 1)
    return figures


def fit(
    data: Data, model: nn.Module, method: Method, rate: float, epochs: int, seed: int, label: str
) -> tuple[float, float]:
    """Trains a model; returns minutes of CPU time and the last epoch's mean training loss."""
    plain = [p for n, p in model.named_parameters() if n.endswith("bias") or p.dim() == 1]
    rest = [p for n, p in model.named_parameters() if not (n.endswith("bias") or p.dim() == 1)]
    groups = [dict(params=rest), dict(params=plain, weight_decay=0.0)]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, weight_decay=4e-5)
    if method.settings is None:
        wrapper = OptimWrapper(optimizer)
    else:
        settings = dict(type="mmnetaug.NetAugOptimWrapper", seed=seed, optimizer=optimizer) | method.settings
        wrapper = OPTIM_WRAPPERS.build(settings)
    steps = len(data.images) // BATCH
    generator = torch.Generator().manual_seed(seed)
    begun, started = time.process_time(), time.monotonic()
    for epoch in range(epochs):
        if method.settings is not None:
            on = epoch >= method.begins * epochs
            wrapper.expand, wrapper.width = on, on and epoch < method.width_until * epochs
            if wrapper.width:
                sort_hidden_channels(model, optimizer)
                wrapper.average = None  # its channels are in the old order
        losses = []
        for number, (images, samples) in enumerate(data.batches(generator)):
            done = epoch * steps + number
            warm = min(1.0, (done + 1) / (WARM_UP * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * (1 + math.cos(math.pi * done / (epochs * steps))) / 2
            with wrapper.optim_context(model):
                parts = model(images, samples, mode="loss")
            loss, log = model.parse_losses(parts)
            wrapper.update_params(loss)
            losses.append(log["loss"].item())
        spent, left = time.monotonic() - started, epochs - epoch - 1
        print(
            f"{label}: epoch {epoch + 1}/{epochs}, loss {statistics.mean(losses):.4f}, "
            f"{spent / 60:.1f} min, about {spent / (epoch + 1) * left / 60:.0f} min to go",
            flush=True,
        )
    return (time.process_time() - begun) / 60, statistics.mean(losses)


def wide_path(network: str, seed: int) -> Path:
    """Where a trained wide network is kept."""
    return WIDE / f"{network}, seed {seed}.pth"


def train_wide(data: Data, network: str, seed: int) -> None:
    """Trains a wide network plainly at the first rate, unless an earlier run has done so."""
    path, method = wide_path(network, seed), METHODS["plain"]
    if path.exists():
        return
    model = build(network, method, seed)
    epochs = NETWORKS[network][3]
    minutes, train_loss = fit(data, model, method, FIRST_RATE, epochs, seed, f"{network} {seed}")
    key = (network, "plain", FIRST_RATE, epochs, seed)
    figures = dict(minutes=minutes, train_loss=train_loss)
    figures |= dict(held_out=accuracy(model, *data.held_out), test=accuracy(model, *data.test))
    if not is_done(key):  # the weights alone may have been lost
        record(dict(zip(KEYS, key, strict=True)) | figures)
    with replaced_when_done(path) as temporary:
        torch.save(model.state_dict(), temporary)


def cut(model: nn.Module, data: Data, network: str, seed: int) -> None:
    """Loads the most important channels of a trained wide network into a narrow one."""
    large = build(network, METHODS["plain"], seed)
    large.load_state_dict(torch.load(wide_path(network, seed), weights_only=True))
    cut_channels(model, large, tensor_forward, (3, 32, 32))
    reestimate_norms(model, data)
    print(f"{network} {seed}: held out {accuracy(model, *data.held_out):.2f} right after the cut", flush=True)


def accuracy_of_largest(model: nn.Module, data: Data, width: bool) -> float:
    """Held-out accuracy of the largest network of the last epoch, its batch norms re-estimated on 50 batches."""
    model = copy.deepcopy(model)
    with model.elastic.at(largest(model.elastic, width)):
        reestimate_norms(model, data)
        return accuracy(model, *data.held_out)


def reestimate_norms(model: nn.Module, data: Data) -> None:
    """Computes the running statistics of batch norms anew, on 50 batches."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    batches = itertools.islice(data.batches(torch.Generator().manual_seed(0)), 50)
    with torch.no_grad():
        for images, _ in batches:
            model(images, mode="tensor")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


# Runs and results -----------------------------------------------------------------------------------------------------

KEYS = ("network", "method", "rate", "epochs", "seed")
FIGURES = ("held_out", "test", "train_loss", "largest", "minutes")


def results() -> list[dict]:
    """All finished runs."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update(rate=float(row["rate"]), epochs=int(row["epochs"]), seed=int(row["seed"]))
        row.update({name: float(row[name]) if row[name] else None for name in FIGURES})
    return rows


def is_done(key: tuple) -> bool:
    """Whether the results have this run."""
    return key in {tuple(row[name] for name in KEYS) for row in results()}


def record(row: dict) -> None:
    """Adds a run to the results."""
    line = ",".join(f'"{row[key]}"' if key in ("network", "method") else str(row[key]) for key in KEYS)
    line += "," + ",".join("" if row.get(name) is None else f"{row[name]:.4f}" for name in FIGURES) + "\n"
    records.append_line(RESULTS, ",".join((*KEYS, *FIGURES)) + "\n", line)


def select(rows: list[dict], network: str, method: str, rate: float | None, epochs: int | None) -> list[dict]:
    """The runs of these settings, one per seed."""
    key = (network, method, rate, epochs)
    return [row for row in rows if (row["network"], row["method"], row["rate"], row["epochs"]) == key]


def next_rate(rows: list[dict], network: str, method: str, epochs: int) -> tuple[float, bool]:
    """The rate with the best held-out accuracy of seed 0 and True, if half and twice that rate have been run, too.

    Otherwise the rate to run next and False.
    """
    of_seed_0 = {
        row["rate"]: row["held_out"]
        for row in rows
        if (row["network"], row["method"], row["epochs"], row["seed"]) == (network, method, epochs, 0)
    }
    best = max(of_seed_0, key=of_seed_0.get, default=FIRST_RATE)
    for rate in (best, 2 * best, best / 2):
        if rate not in of_seed_0:
            return rate, False
    return best, True


def best_rate(rows: list[dict], network: str, method: str, epochs: int) -> float | None:
    """The rate with the best held-out accuracy of seed 0; None before half and twice that rate have been run, too."""
    rate, found = next_rate(rows, network, method, epochs)
    return rate if found else None


def seeds_at_best_rate(rows: list[dict], network: str, method: str) -> set[int]:
    """Seeds with a finished run of the network's own length at the method's best rate."""
    epochs = NETWORKS[network][3]
    return {row["seed"] for row in select(rows, network, method, best_rate(rows, network, method, epochs), epochs)}


def run(args: argparse.Namespace) -> None:
    """Runs what the arguments name and the results do not have."""
    torch.set_num_threads(1)
    data = Data(args.cifar)
    epochs = args.epochs or NETWORKS[args.network][3]
    for seed in args.seeds:
        for method in args.methods:
            for rate in args.rates or rates_to_run(args.network, method, epochs, seed):
                key = (args.network, method, rate, epochs, seed)
                if not is_done(key):
                    figures = train(data, args.network, METHODS[method], rate, epochs, seed, " ".join(map(str, key)))
                    record(dict(zip(KEYS, key, strict=True)) | figures)


def rates_to_run(network: str, method: str, epochs: int, seed: int) -> Iterator[float]:
    """Rates one after the other, to be asked for the next when a run is done.

    The main methods search with seed 0 and use what they found with the other seeds and other numbers of epochs. A
    variant runs at the rate of what it is a variant of.
    """
    main, base_epochs = method.partition(",")[0], NETWORKS[network][3]
    rate, found = next_rate(results(), network, main, base_epochs)
    if seed == 0 and method in SEARCHED and epochs == base_epochs:
        while not found:
            yield rate
            rate, found = next_rate(results(), network, main, base_epochs)
    if not found:
        sys.exit(f"the rates of {main} have not been compared yet: run seed 0, or give --rates")
    yield rate


def interval(differences: list[float]) -> str:
    """Mean and 95 % interval."""
    if len(differences) < 2:
        return f"{differences[0]:+.2f}" if differences else ""
    return "{:+.2f} ± {:.2f}".format(*records.interval(differences))


def mean_of(values: list[float], name: str) -> str:
    """A mean as the page shows it, accuracies with their standard deviation."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 and name in ("test", "held_out") else ""
    return f"{statistics.mean(values):.3f}" if name == "train_loss" else f"{statistics.mean(values):.1f}{spread}"


def paired(runs: list[dict], plain: list[dict]) -> str:
    """Mean difference of test accuracy over the seeds that both have, and its interval; nothing for plain itself."""
    of_plain = {run["seed"]: run["test"] for run in plain}
    differences = [run["test"] - of_plain[run["seed"]] for run in runs if run["seed"] in of_plain]
    return "" if runs == plain else interval(differences)


def table(rows: list[dict], network: str) -> list[str]:
    """A network's runs as lines of a Markdown table."""
    own, equal_time = NETWORKS[network][3], EQUAL_TIME.get(network)
    plain_rate = best_rate(rows, network, "plain", own)
    plain = select(rows, network, "plain", plain_rate, own)
    longer = select(rows, network, "plain", plain_rate, equal_time)
    header = ["method", "epochs", "rate", "seeds", "test", "held out", "training loss", "largest", "minutes of CPU"]
    if plain:
        header.append(f"test − plain, {own} epochs")
    if longer:
        header.append(f"test − plain, {equal_time} epochs")
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    keys = dict.fromkeys((r["method"], r["epochs"], r["rate"]) for r in rows if r["network"] == network)
    for method, epochs, rate in sorted(keys, key=lambda key: (list(METHODS).index(key[0]), *key[1:])):
        runs = select(rows, network, method, rate, epochs)
        chosen = rate == best_rate(rows, network, method, epochs) and method in MAIN
        means = {name: mean_of([run[name] for run in runs if run[name] is not None], name) for name in FIGURES}
        cells = [f"**{method}**" if chosen else method, epochs, f"{rate:g}", len(runs)]
        cells += [means[name] for name in ("test", "held_out", "train_loss", "largest", "minutes")]
        cells += [paired(runs, others) for others in (plain, longer) if others]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def plot(rows: list[dict]) -> None:
    """Draws nano's test accuracy over minutes of CPU, the teacher's included: each run, and the mean of each length."""
    wide = [row["minutes"] for row in rows if row["network"] == "nano x2.8"]
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for number, (method, rate) in enumerate(TO_PLOT.items()):
        if METHODS[method].teacher and not wide:
            continue
        before = statistics.mean(wide) if METHODS[method].teacher else 0
        runs: dict[int, list[dict]] = {}
        for row in rows:
            if (row["network"], row["method"], row["rate"]) == ("nano", method, rate):
                runs.setdefault(row["epochs"], []).append(row)
        means = []
        for epochs, found in sorted(runs.items()):
            minutes = before + statistics.mean(run["minutes"] for run in found)
            means.append((minutes, statistics.mean(run["test"] for run in found)))
            axes.scatter([minutes] * len(found), [run["test"] for run in found], 8, f"C{number}", alpha=0.5)
            axes.annotate(f"{epochs}", means[-1], (5, -11), textcoords="offset points", color=f"C{number}")
        if means:
            axes.plot(*zip(*means, strict=True), f"C{number}o-", label=method)
    axes.set(xlabel="minutes of CPU, the teacher's included", ylabel="test accuracy", title="nano: numbers are epochs")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with replaced_when_done(PLOT) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")


def report(args: argparse.Namespace) -> None:
    """Writes the page and the plot."""
    rows = results()
    lines = [
        "# At saturation: plain training, NetAug and in-place distillation",
        "",
        "Written by `python benchmarks/saturation.py report` from [saturation.csv](saturation.csv), one line of which "
        "is one run. The protocol stands at the head of `benchmarks/saturation.py` and was committed before the runs; "
        "after the first five the search for the rate was added, after the first distilled one the variants *to the "
        "end*, after those the start *cut from* a wider network, after three seeds of that the *wide teacher*, and "
        "after its eight seeds the comparison at 96 epochs. "
        "Accuracies in percent. *Largest*: held-out accuracy of the largest network of the last epoch. Differences are "
        "paired by seed. Only *What it says* is written by hand, in `benchmarks/saturation_reading.md`.",
        "",
        READING.read_text(encoding="utf-8").rstrip(),
        "",
        "![Accuracy over CPU time](saturation.png)",
    ]
    for network in NETWORKS:
        if not any(row["network"] == network for row in rows):
            continue
        lines += ["", f"## {network}", ""]
        seeds = {method: len(seeds_at_best_rate(rows, network, method)) for method in MAIN}
        short = [f"{method} ({count} of {SEEDS} seeds)" for method, count in seeds.items() if count < SEEDS]
        if short and seeds["plain"]:
            lines += [f"Nothing is claimed of {', '.join(short)}.", ""]
        lines += table(rows, network)
    with replaced_when_done(PAGE) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(rows)
    print("\n".join(lines))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run", help="train what the results do not have yet")
    command.add_argument("--cifar", required=True, metavar="PATH", help="holds train/<class>/ and test/<class>/")
    command.add_argument("--network", choices=NETWORKS, default="nano")
    command.add_argument("--methods", nargs="+", choices=METHODS, default=MAIN, metavar="METHOD")
    command.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    command.add_argument("--rates", nargs="+", type=float, metavar="LR", help="in place of the grid or its best")
    command.add_argument("--epochs", type=int, metavar="N", help="in place of the network's own number")
    command.set_defaults(call=run)
    commands.add_parser("report", help="write docs/saturation.md and its plot").set_defaults(call=report)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
