"""The study's manifest: which runs, with which seeds and budgets. Every run is committed here before it is run.

Two CPU cores take fifteen hours for all of it. The order is that of interest: who stops early has the main results.

The experiments called "matched init" were run first, and showed what was wrong with it; NetAug's own initialisation of
new channels has been another since (``mmnetaug.elastic.fill_new_channels``).
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Task:
    """What a group of experiments is measured on.

    Attributes:
        data: Which data set.
        metric: Name of the figure.
        logged: What the log calls it.
        text: What the results page says of the group.
    """

    data: str
    metric: str
    logged: str
    text: str


TASKS = {
    "classification: a micro network": Task(
        "cifar",
        "top-1",
        "accuracy/top1",
        "CIFAR-10 at 32 pixels. *Micro* is a MobileNetV2 in small, limited by its capacity: the paper's claim is about "
        "such networks. NetAug has the authors' factors (width 1, 1.8, 2.6; expand 1, 1.6, 2.2, 2.8), "
        "sorting, and width augmentation off in the second half; the tiny network starts as without NetAug unless the "
        "authors' initialisation is named. The teacher of the distilled runs is micro three times as wide.",
    ),
    "control: a network that over-fits": Task(
        "cifar",
        "top-1",
        "accuracy/top1",
        "ResNet-18 at half width on 5000 images of CIFAR-10. NetAug should *not* help where capacity is no limit. "
        "Plain training is also run for as many passes as NetAug makes (60 epochs), and with twice the learning rate, "
        "because with α = 1 SGD sees the sum of two gradients.",
    ),
    "detection: handwritten digits": Task(
        "digits",
        "AP50",
        "pascal_voc/mAP",
        "YOLOv3 with MobileNetV3 w0.35 on the demo's scenes (1500 to train on, 300 to test; real scans of digits on "
        "drawn ground), from scratch at 160 pixels. NetAug in the detector's training, factors 1 and 1.5, neither "
        "sorting nor a schedule. Plain training for 14 epochs makes as many passes as NetAug's 7. "
        "The rows that are compared with NetAug by a change of their own (the ablations) change one thing each.",
    ),
    "detection: playing cards": Task(
        "cards",
        "AP50",
        "pascal_voc/mAP",
        "The same network on photographs of playing cards (EdjeElectronics; 296 to train on, 67 to test, 6 classes) at "
        "192 pixels: from scratch, with NetAug in the detector's training (factors 1 and 1.5), and from backbones that "
        "were pre-trained on CIFAR-10 plainly and, as in the paper, with NetAug.",
    ),
    "pre-training of the detectors' backbone": Task(
        "cifar",
        "top-1",
        "accuracy/top1",
        "MobileNetV3 w0.35 on 10 000 images of CIFAR-10, enlarged to 64 pixels; the authors' factors. Plain training "
        "is also run for as many passes as NetAug makes (40 epochs), and with twice the learning rate, because with "
        "α = 1 SGD sees the sum of two gradients.",
    ),
}
MICRO, CONTROL, DIGITS, CARDS, PRETRAINING = TASKS


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs that differ in their seed alone.

    Attributes:
        name: What the results call it.
        task: Key of ``TASKS``.
        config: File below ``configs/``.
        plain: Config that measures the tiny network, the same as ``config`` for plain training.
        epochs: Of training.
        baseline: Name of the experiment it is compared with, seed by seed; "" for baselines.
        options: Further ``--cfg-options``.
        seeds: One run each.
        needs: Names of experiments whose run with seed 0 must be there (a teacher, a pre-trained backbone).
        start: Name of the one whose weights training starts from.
        sizes: Input sizes to measure a detector at.
        size: The one it was trained at.
        plotted: Whether its learning curve is shown.
    """

    name: str
    task: str
    config: str
    plain: str
    epochs: int
    baseline: str = ""
    options: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    needs: tuple[str, ...] = ()
    start: str = ""
    sizes: tuple[int, ...] = ()
    size: int = 0
    plotted: bool = False

    @property
    def netaug(self) -> bool:
        """Whether the network is elastic in training."""
        return "netaug" in self.config

    @property
    def cost(self) -> float:
        """Rough share of the whole study's time."""
        return self.epochs * (3.5 if self.netaug else 1)


_OFF = ("default_hooks.netaug_schedule.width_until=0", "default_hooks.netaug_schedule.expand_until=0")
_MATCHED = "model.type=mmnetaug.MatchedNetAug"
_MEASURED = "optim_wrapper.type=mmnetaug.MeasuringOptimWrapper"  # logs the angle between the two gradients
_DOUBLED = "optim_wrapper.optimizer.lr=0.2"


def _classifier(name: str, task: str, config: str, plain: str, epochs: int, *options: str, **more) -> Experiment:
    options = (f"train_cfg.max_epochs={epochs}", *options)
    return Experiment(name, task, f"study/{config}.py", f"study/{plain}.py", epochs, options=options, **more)


def _micro(name: str, config: str, *options: str, epochs: int = 30, **more) -> Experiment:
    return _classifier(name, MICRO, config, "micro", epochs, *options, **more)


def _pretraining(name: str, *options: str, config: str = "pretrain_netaug", epochs: int = 20, **more) -> Experiment:
    return _classifier(name, PRETRAINING, config, "pretrain", epochs, *options, **more)


def _control(name: str, config: str, *options: str, epochs: int = 30, baseline: str = "") -> Experiment:
    return _classifier(name, CONTROL, config, "resnet18", epochs, *options, baseline=baseline)


def _detector(
    name: str, task: str, config: str, plain: str, epochs: int, size: int, *options: str, **more
) -> Experiment:
    more = dict(sizes=tuple(size + 32 * step for step in (-2, -1, 0, 1, 2))) | more
    return Experiment(name, task, config, plain, epochs, options=options, size=size, **more)


_DIGITS, _CARDS = "yolov3_mbv3_w035_digits.py", "study/cards.py"


def _digits(
    name: str, config: str, *options: str, epochs: int = 7, baseline: str = "digits, NetAug", **more
) -> Experiment:
    if epochs != 7:
        ends = (f"train_cfg.max_epochs={epochs}", "param_scheduler.1.end={0}", "param_scheduler.1.T_max={0}")
        options = (*(end.format(epochs) for end in ends), *options)
    return _detector(name, DIGITS, config, _DIGITS, epochs, 160, *options, baseline=baseline, sizes=(160,), **more)


_EIGHT_SEEDS = tuple(range(8))  # 15 minutes a pair

EXPERIMENTS: tuple[Experiment, ...] = (
    _micro("micro", "micro", plotted=True),
    _micro("micro, NetAug", "micro_netaug", _MEASURED, baseline="micro", plotted=True),
    _micro("micro, NetAug, matched init", "micro_netaug", _MEASURED, _MATCHED, baseline="micro", seeds=(0, 1)),
    _detector("digits", DIGITS, _DIGITS, _DIGITS, 7, 160, seeds=_EIGHT_SEEDS, plotted=True),
    _detector(
        *("digits, NetAug", DIGITS, "yolov3_mbv3_w035_netaug_digits.py", _DIGITS, 7, 160),
        **dict(baseline="digits", seeds=_EIGHT_SEEDS, plotted=True),
    ),
    _detector(
        *("digits, NetAug, matched init", DIGITS, "study/digits_netaug_matched.py", _DIGITS, 7, 160), baseline="digits"
    ),
    _detector("cards", CARDS, _CARDS, _CARDS, 40, 192, plotted=True),
    _detector("cards, NetAug", CARDS, "study/cards_netaug.py", _CARDS, 40, 192, baseline="cards", plotted=True),
    _detector(
        *("cards, NetAug, matched init", CARDS, "study/cards_netaug.py", _CARDS, 40, 192, _MATCHED), baseline="cards"
    ),
    _pretraining("pre-training", config="pretrain", plotted=True),
    _pretraining("pre-training, NetAug", _MEASURED, baseline="pre-training", plotted=True),
    _pretraining("pre-training, NetAug, matched init", _MATCHED, baseline="pre-training", seeds=(0,), plotted=True),
    _detector(
        *("cards, pre-trained", CARDS, _CARDS, _CARDS, 40, 192),
        **dict(baseline="cards", start="pre-training", needs=("pre-training",), plotted=True),
    ),
    _detector(
        *("cards, NetAug-pre-trained", CARDS, _CARDS, _CARDS, 40, 192),
        **dict(baseline="cards, pre-trained", start="pre-training, NetAug", needs=("pre-training, NetAug",)),
        plotted=True,
    ),
    _detector(
        *("cards, NetAug-pre-trained, matched init", CARDS, _CARDS, _CARDS, 40, 192),
        **dict(baseline="cards, pre-trained", start="pre-training, NetAug, matched init"),
        needs=("pre-training, NetAug, matched init",),
    ),
    _detector(
        *("cards, pre-trained, NetAug", CARDS, "study/cards_netaug.py", _CARDS, 40, 192),
        **dict(baseline="cards, pre-trained", start="pre-training", needs=("pre-training",), plotted=True),
    ),
    _micro("micro, authors' init", "micro_netaug", "model.init=authors", *_OFF, baseline="micro"),
    _micro("micro, NetAug, authors' init", "micro_netaug", "model.init=authors", baseline="micro, authors' init"),
    _classifier("teacher", MICRO, "teacher", "teacher", 20, seeds=(0,)),
    _micro("micro, KD", "micro_kd", needs=("teacher",), baseline="micro"),
    _micro("micro, NetAug + KD", "micro_netaug_kd", needs=("teacher",), baseline="micro, KD"),
    _micro(
        "micro, dropout 0.2",
        "micro",
        "model.head.type=mmnetaug.DropoutClsHead",
        "model.head.dropout=0.2",
        baseline="micro",
    ),
    _micro("micro, twice the learning rate", "micro", _DOUBLED, baseline="micro, NetAug"),
    _micro("micro, 60 epochs", "micro", epochs=60, baseline="micro, NetAug"),
    _control("ResNet-18", "resnet18"),
    _control("ResNet-18, NetAug", "resnet18_netaug", baseline="ResNet-18"),
    _control("ResNet-18, twice the learning rate", "resnet18", _DOUBLED, baseline="ResNet-18, NetAug"),
    _control("ResNet-18, 60 epochs", "resnet18", epochs=60, baseline="ResNet-18, NetAug"),
    _control("ResNet-18, 60 epochs, NetAug", "resnet18_netaug", epochs=60, baseline="ResNet-18, 60 epochs"),
    _pretraining("pre-training, twice the learning rate", _DOUBLED, config="pretrain", baseline="pre-training, NetAug"),
    _pretraining("pre-training, 40 epochs", config="pretrain", epochs=40, baseline="pre-training, NetAug"),
    _digits("digits, 14 epochs", _DIGITS, epochs=14, plotted=True),
    _digits(
        *("digits, 14 epochs, NetAug", "study/digits_netaug.py"),
        **dict(epochs=14, baseline="digits, 14 epochs", plotted=True),
    ),
    *(
        _digits(f"digits, NetAug, {change}", "study/digits_netaug.py", *options)
        for change, options in {
            "α = 0.5": ("optim_wrapper.alpha=0.5",),
            "α = 2": ("optim_wrapper.alpha=2.0",),
            "width alone": ("model.expand=[1]",),
            "expand alone": ("model.width=[1]",),
            "factors up to 2": ("model.width=[1,1.5,2]", "model.expand=[1,1.5,2]"),
            "sorting": ("default_hooks.channel_sort.type=mmnetaug.ChannelSortHook",),
            "width off at half time": (
                "default_hooks.netaug_schedule.type=mmnetaug.NetAugScheduleHook",
                "default_hooks.netaug_schedule.width_until=0.5",
            ),
            "authors' init": ("model.init=authors",),
            "two networks a step": ("optim_wrapper.type=mmnetaug.TwoNetworksOptimWrapper",),
            "shared statistics, re-estimated": (
                "optim_wrapper.type=mmnetaug.SharedStatisticsOptimWrapper",
                "default_hooks.precise_bn.type=mmpretrain.PreciseBNHook",
                "default_hooks.precise_bn.num_samples=1500",
                "default_hooks.precise_bn.interval=7",
            ),
        }.items()
    ),
    _micro("micro, 100 epochs", "micro", epochs=100, plotted=True),
    _micro(
        "micro, 100 epochs, NetAug", "micro_netaug", _MEASURED, epochs=100, baseline="micro, 100 epochs", plotted=True
    ),
    _micro(
        *("micro, 100 epochs, twice the learning rate", "micro", _DOUBLED),
        **dict(epochs=100, baseline="micro, 100 epochs, NetAug", plotted=True),
    ),
    _micro("micro, 200 epochs", "micro", epochs=200, baseline="micro, 100 epochs, NetAug"),
    _micro(
        "micro, NetAug, twice the learning rate", "micro_netaug", _DOUBLED, baseline="micro, twice the learning rate"
    ),
    _micro(
        *("micro, four times the learning rate", "micro", "optim_wrapper.optimizer.lr=0.4"),
        baseline="micro, NetAug, twice the learning rate",
    ),
)
