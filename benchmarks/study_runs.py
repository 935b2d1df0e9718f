"""The study's manifest: which runs, with which seeds and budgets. Every run is committed here before it is run.

Two CPU cores take some ten hours for all of it. The order is that of interest: who stops early has the main results.
What the first results made us ask is a task of its own, and says so.
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
        "sorting, and width augmentation off in the second half; the tiny network starts as without NetAug (matched) "
        "unless the authors' initialisation is named. The teacher of the distilled runs is micro three times as wide.",
    ),
    "control: a network that over-fits": Task(
        "cifar",
        "top-1",
        "accuracy/top1",
        "ResNet-18 at half width on 5000 images of CIFAR-10. NetAug should *not* help where capacity is no limit.",
    ),
    "ablations: micro, 10 epochs": Task(
        "cifar",
        "top-1",
        "accuracy/top1",
        "One thing changed at a time, at a third of the budget.",
    ),
    "detection: handwritten digits": Task(
        "digits",
        "AP50",
        "pascal_voc/mAP",
        "YOLOv3 with MobileNetV3 w0.35 on the demo's scenes (1500 to train on, 300 to test; real scans of digits on "
        "drawn ground), from scratch at 160 pixels. NetAug in the detector's training, factors 1 and 1.5.",
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
        "MobileNetV3 w0.35 on 10 000 images of CIFAR-10, enlarged to 64 pixels; one run each.",
    ),
    "asked afterwards: digits, new seeds": Task(
        "digits",
        "AP50",
        "pascal_voc/mAP",
        "Asked after the rows above were known: does NetAug's lead on the digits hold for five seeds that had no part "
        "in raising the question? Everything else is as above.",
    ),
    "asked afterwards: cards, NetAug on a pre-trained backbone": Task(
        "cards",
        "AP50",
        "pascal_voc/mAP",
        "Asked after NetAug in the training of the cards' detector had fallen behind *from scratch*, where 40 epochs "
        "are far too few: is it behind on a (plainly) pre-trained backbone too, with which they are nearer to enough?",
    ),
    "asked afterwards: why NetAug's pre-training fell behind": Task(
        "cifar",
        "top-1",
        "accuracy/top1",
        "Asked after NetAug had fallen four points behind in pre-training, its augmented networks having a higher loss "
        "than the tiny one in every epoch: is it the length of the training, the size of the factors, or the learning "
        "rate, and is a larger network better at all here? As above, one run each; the smaller factors are 1 and 1.5 "
        "for width and for expansion.",
    ),
}
MICRO, CONTROL, ABLATIONS, DIGITS, CARDS, PRETRAINING, DIGITS_AGAIN, CARDS_PRETRAINED, WHY = TASKS


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


def _micro(name: str, config: str, *options: str, epochs: int = 30, baseline: str = "", **more) -> Experiment:
    options = (f"train_cfg.max_epochs={epochs}", *options)
    task = more.pop("task", MICRO)
    return Experiment(name, task, f"study/{config}.py", "study/micro.py", epochs, baseline, options, **more)


_OFF = ("default_hooks.netaug_schedule.width_until=0", "default_hooks.netaug_schedule.expand_until=0")
_MEASURED = "optim_wrapper.type=mmnetaug.MeasuringOptimWrapper"  # logs the angle between the two gradients


def _short(name: str, *options: str, config: str = "micro_netaug", baseline: str = "10 epochs") -> Experiment:
    return _micro(name, config, "train_cfg.val_interval=5", *options, epochs=10, baseline=baseline, task=ABLATIONS)


def _pretraining(
    name: str, *options: str, config: str = "pretrain", epochs: int = 20, task: str = PRETRAINING, baseline: str = ""
) -> Experiment:
    options = (f"train_cfg.max_epochs={epochs}", *options)
    return Experiment(name, task, f"study/{config}.py", "study/pretrain.py", epochs, baseline, options, (0,))


def _why(name: str, *options: str, baseline: str = "", epochs: int = 20) -> Experiment:
    config = "pretrain_netaug" if "NetAug" in name else "pretrain"
    return _pretraining(name, *options, config=config, epochs=epochs, task=WHY, baseline=baseline)


def _detector(
    name: str, task: str, config: str, plain: str, epochs: int, size: int, *options: str, **more
) -> Experiment:
    sizes = tuple(size + 32 * step for step in (-2, -1, 0, 1, 2))
    return Experiment(name, task, config, plain, epochs, options=options, sizes=sizes, size=size, **more)


_DIGITS, _CARDS = "yolov3_mbv3_w035_digits.py", "study/cards.py"
_NEW_SEEDS = (3, 4, 5, 6, 7)

EXPERIMENTS: tuple[Experiment, ...] = (
    _micro("micro", "micro", plotted=True),
    _micro("micro, NetAug", "micro_netaug", _MEASURED, baseline="micro", plotted=True),
    _detector("digits", DIGITS, _DIGITS, _DIGITS, 7, 160, plotted=True),
    _detector(
        "digits, NetAug", DIGITS, "yolov3_mbv3_w035_netaug_digits.py", _DIGITS, 7, 160, baseline="digits", plotted=True
    ),
    _detector("cards", CARDS, _CARDS, _CARDS, 40, 192, plotted=True),
    _detector("cards, NetAug", CARDS, "study/cards_netaug.py", _CARDS, 40, 192, baseline="cards", plotted=True),
    _pretraining("pre-training"),
    _pretraining("pre-training, NetAug", config="pretrain_netaug", baseline="pre-training"),
    _detector(
        *("cards, pre-trained", CARDS, _CARDS, _CARDS, 40, 192),
        **dict(baseline="cards", start="pre-training", needs=("pre-training",), plotted=True),
    ),
    _detector(
        *("cards, NetAug-pre-trained", CARDS, _CARDS, _CARDS, 40, 192),
        **dict(
            baseline="cards, pre-trained", start="pre-training, NetAug", needs=("pre-training, NetAug",), plotted=True
        ),
    ),
    _micro("micro, authors' init", "micro_netaug", "model.init=authors", *_OFF, baseline="micro"),
    _micro("micro, NetAug, authors' init", "micro_netaug", "model.init=authors", baseline="micro, authors' init"),
    Experiment("teacher", MICRO, "study/teacher.py", "study/teacher.py", 20, "", ("train_cfg.max_epochs=20",), (0,)),
    _micro("micro, KD", "micro_kd", needs=("teacher",), baseline="micro"),
    _micro("micro, NetAug + KD", "micro_netaug_kd", needs=("teacher",), baseline="micro, KD"),
    _micro(
        "micro, dropout 0.2",
        "micro",
        "model.head.type=mmnetaug.DropoutClsHead",
        "model.head.dropout=0.2",
        baseline="micro",
    ),
    Experiment("ResNet-18", CONTROL, "study/resnet18.py", "study/resnet18.py", 30, "", ("train_cfg.max_epochs=30",)),
    Experiment(
        *("ResNet-18, NetAug", CONTROL, "study/resnet18_netaug.py", "study/resnet18.py", 30, "ResNet-18"),
        ("train_cfg.max_epochs=30",),
    ),
    _short("10 epochs", config="micro", baseline=""),
    _short("10 epochs, NetAug", baseline="10 epochs"),
    _short("α = 0.5", "optim_wrapper.alpha=0.5", baseline="10 epochs, NetAug"),
    _short("α = 2", "optim_wrapper.alpha=2.0", baseline="10 epochs, NetAug"),
    _short("width alone", "model.expand=[1]", baseline="10 epochs, NetAug"),
    _short("expand alone", "model.width=[1]", baseline="10 epochs, NetAug"),
    _short("smaller factors", "model.width=[1,1.4]", "model.expand=[1,1.5]", baseline="10 epochs, NetAug"),
    _short("no sorting", "default_hooks.channel_sort=None", baseline="10 epochs, NetAug"),
    _short("width to the end", "default_hooks.netaug_schedule.width_until=None", baseline="10 epochs, NetAug"),
    _short("two networks a step", "optim_wrapper.type=mmnetaug.TwoNetworksOptimWrapper", baseline="10 epochs, NetAug"),
    _short(
        "shared statistics, re-estimated",
        "optim_wrapper.type=mmnetaug.SharedStatisticsOptimWrapper",
        "default_hooks.precise_bn.type=PreciseBNHook",
        "default_hooks.precise_bn.num_samples=16000",
        "default_hooks.precise_bn.interval=5",
        baseline="10 epochs, NetAug",
    ),
    _micro("micro, 100 epochs", "micro", epochs=100, plotted=True),
    _micro(
        "micro, 100 epochs, NetAug", "micro_netaug", _MEASURED, epochs=100, baseline="micro, 100 epochs", plotted=True
    ),
    _detector("digits again", DIGITS_AGAIN, _DIGITS, _DIGITS, 7, 160, seeds=_NEW_SEEDS),
    _detector(
        *("digits again, NetAug", DIGITS_AGAIN, "yolov3_mbv3_w035_netaug_digits.py", _DIGITS, 7, 160),
        **dict(baseline="digits again", seeds=_NEW_SEEDS),
    ),
    _detector(
        *("cards, pre-trained, NetAug", CARDS_PRETRAINED, "study/cards_netaug.py", _CARDS, 40, 192),
        **dict(baseline="cards, pre-trained", start="pre-training", needs=("pre-training",)),
    ),
    _why("pre-training, 10 epochs", epochs=10),
    _why("pre-training, 10 epochs, NetAug", epochs=10, baseline="pre-training, 10 epochs"),
    _why("pre-training, 60 epochs", epochs=60),
    _why("pre-training, 60 epochs, NetAug", epochs=60, baseline="pre-training, 60 epochs"),
    _why(
        "pre-training, NetAug, smaller factors", "model.width=[1,1.5]", "model.expand=[1,1.5]", baseline="pre-training"
    ),
    _why("pre-training, twice as wide", "model.backbone.widen_factor=0.7", baseline="pre-training"),
    _why("pre-training, half the rate", "optim_wrapper.optimizer.lr=0.05"),
    _why(
        *("pre-training, half the rate, NetAug", "optim_wrapper.optimizer.lr=0.05"),
        baseline="pre-training, half the rate",
    ),
)
