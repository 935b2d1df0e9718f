"""The rows of the paper: networks, recipes and published numbers, each with the config that runs it.

This table drives docs/paper.md (written by ``tools/paper.py``) and the tests of the configs; nothing of it is written
down a second time. Published numbers are those of Cai et al., "Network Augmentation for Tiny Deep Learning", ICLR 2022.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple


class Network(NamedTuple):
    """A network of table 1.

    Attributes:
        label: What the paper calls it.
        size: Side of its ImageNet images in pixels.
        params: Millions of parameters of the classifier, as counted here.
        macs: Millions of multiply-accumulates at that size, as counted here.
        paper: The two as the paper prints them.
        width: NetAug's width factors.
        expand: NetAug's expand factors.
        published: Whether the authors published the factors.
    """

    label: str
    size: int
    params: float
    macs: float
    paper: str
    width: tuple[float, ...] = (1, 1.8, 2.6)
    expand: tuple[float, ...] = (1, 1.6, 2.2, 2.8)
    published: bool = True


NETWORKS = {
    "mobilenet_v2_tiny": Network("MobileNetV2-Tiny", 144, 0.750, 23.50, "0.75M, 23.5M"),
    "mcunet": Network("MCUNet", 176, 0.737, 81.79, "0.74M, 81.8M", (1, 1.6, 2.2)),
    "mobilenet_v3_w035": Network("MobileNetV3 w0.35", 160, 2.110, 19.50, "2.2M, 19.6M", (1, 2, 3)),
    "proxyless_w035": Network("ProxylessNAS w0.35", 160, 1.781, 35.72, "1.8M, 35.7M"),
    "proxyless_w100": Network("ProxylessNAS w1.0", 160, 4.081, 164.11, "4.1M, 164.1M", published=False),
    "mobilenet_v2_w035": Network("MobileNetV2 w0.35", 160, 1.677, 30.87, "1.7M, 30.9M"),
    "mobilenet_v2_w100": Network("MobileNetV2 w1.0", 160, 3.505, 154.08, "3.5M, 154.1M", published=False),
    "resnet50": Network("ResNet50", 224, 25.557, 4089.18, "25.5M, 4.1G", (1, 1.5, 2), (1,), False),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a row is trained.

    Attributes:
        epochs: All of them, warm-up included.
        batch: Images per step, of all GPUs.
        gpus: Number of GPUs that this takes with the config's images per GPU.
        lr: Learning rate at that batch, after warm-up.
        weight_decay: Of weights; classifiers have none on norms and biases.
        size: Side of the test images in pixels.
    """

    epochs: int
    batch: int
    gpus: int
    lr: float
    weight_decay: float
    size: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of the paper.

    Attributes:
        table: Table or figure.
        network: Key of ``NETWORKS``.
        method: What the row is about.
        data: Data set.
        metric: Of the number.
        paper: The number; None where it is only drawn in a figure.
        config: File below ``configs/``.
        recipe: What the config must say.
        options: Values for ``--cfg-options``.
        start: Pre-training that the row starts from: the method of another row, of the same network on ImageNet.
    """

    table: str
    network: str
    method: str
    data: str
    metric: str
    paper: float | None
    config: str
    recipe: Recipe
    options: tuple[str, ...] = ()
    start: str = ""

    @property
    def netaug(self) -> bool:
        """Whether the training itself has augmented passes."""
        return self.method.startswith("NetAug")


SUFFIX = {"Baseline": "", "KD": "_kd", "NetAug": "_netaug", "NetAug + KD": "_netaug_kd"}


def imagenet(network: str, **changes: float) -> Recipe:
    """The recipe of ImageNet-1k: 150 epochs and 5 of warm-up, batch 2048 on 16 GPUs (MCUNet: 32)."""
    recipe = Recipe(155, 2048, 16, 0.4, 4e-5, NETWORKS[network].size)
    if network == "mobilenet_v3_w035":
        recipe = dataclasses.replace(recipe, lr=1.6, weight_decay=3e-5)
    if network == "mcunet":
        recipe = dataclasses.replace(recipe, gpus=32)
    return dataclasses.replace(recipe, **changes)


def _pretraining(table: str, network: str, method: str, top1: float | None, epochs: int = 150) -> Row:
    return Row(
        table,
        network,
        method if epochs == 150 else f"{method}, {epochs} epochs",
        "ImageNet",
        "top-1",
        top1,
        f"classification/imagenet/{network}{SUFFIX[method]}_in1k.py",
        imagenet(network, epochs=epochs + 5),
        () if epochs == 150 else (f"train_cfg.max_epochs={epochs + 5}",),
    )


def _table1() -> Iterator[Row]:
    published = {
        "mobilenet_v2_tiny": (51.7, 53.3),
        "mcunet": (61.5, 62.7),
        "mobilenet_v3_w035": (58.1, 60.3),
        "proxyless_w035": (59.1, 60.8),
        "proxyless_w100": (71.2, 71.9),
        "mobilenet_v2_w035": (56.3, 57.8),
        "mobilenet_v2_w100": (69.7, 70.6),
        "resnet50": (76.8, 76.5),
    }
    for network, numbers in published.items():
        for method, top1 in zip(("Baseline", "NetAug"), numbers, strict=True):
            yield _pretraining("Table 1, figure 4", network, method, top1)


def _table2() -> Iterator[Row]:
    published = {
        "mobilenet_v2_tiny": (52.8, 54.4),
        "mobilenet_v2_w035": (57.0, 59.2),
        "mobilenet_v3_w035": (59.8, 61.5),
        "proxyless_w035": (60.4, 61.5),
    }
    for network, numbers in published.items():
        for method, top1 in zip(("KD", "NetAug + KD"), numbers, strict=True):
            yield _pretraining("Table 2", network, method, top1)


def _figure3() -> Iterator[Row]:
    tiny = "mobilenet_v2_tiny"
    for epochs, numbers in {75: (None, None), 300: (52.4, 53.7), 600: (None, None)}.items():
        for method, top1 in zip(("Baseline", "NetAug"), numbers, strict=True):
            yield _pretraining("Table 3, figure 3" if epochs == 300 else "Figure 3", tiny, method, top1, epochs)
    # the text names NetAug's 20 epochs, as good as the baseline's at "83% fewer": those are then 120
    for epochs, method in itertools.product((20, 120), ("Baseline", "NetAug")):
        config = f"classification/imagenet21k/{tiny}{SUFFIX[method]}_in21k_p.py"
        label, options = (
            (method, ()) if epochs == 20 else (f"{method}, {epochs} epochs", (f"train_cfg.max_epochs={epochs + 5}",))
        )
        recipe = imagenet(tiny, epochs=epochs + 5)
        yield Row("Figure 3", tiny, label, "ImageNet-21K-P", "top-1", None, config, recipe, options)


def _tables3_6_7() -> Iterator[Row]:
    tiny = "mobilenet_v2_tiny"
    randaugment = "train_dataloader.dataset.pipeline.3.num_policies=1"
    # table, method, config, top-1, epochs, option
    for table, method, name, top1, epochs, options in (
        ("Table 3", "Dropout, keep 0.9", "dropout", 51.0, 150, ()),
        ("Table 3", "Dropout, keep 0.8", "dropout", 50.3, 150, ("model.head.dropout=0.2",)),
        ("Tables 3, 6", "MixUp, α = 0.2", "mixup", 51.7, 300, ()),
        ("Table 6", "MixUp, α = 0.1", "mixup", 52.2, 300, ("model.train_cfg.augments.alpha=0.1",)),
        ("Table 3", "AutoAugment", "autoaugment", 51.0, 300, ()),
        ("Tables 3, 6", "RandAugment, N = 2, M = 9", "randaugment", 49.6, 300, ()),
        ("Table 6", "RandAugment, N = 1, M = 9", "randaugment", 51.5, 300, (randaugment,)),
        ("Tables 3, 6", "DropBlock, keep 0.9, size 5", "dropblock", 48.7, 300, ()),
        (
            "Table 6",
            "DropBlock, keep 0.95, size 5",
            "dropblock",
            50.6,
            300,
            ("model.backbone.drop_block.drop_prob=0.05",),
        ),
        ("Table 7", "No augmentation", "noaug", 50.8, 150, ()),
    ):
        config = f"classification/ablations/{tiny}_{name}_in1k.py"
        recipe = imagenet(tiny, epochs=epochs + 5)
        yield Row(table, tiny, method, "ImageNet", "top-1", top1, config, recipe, options)
    plain = f"classification/imagenet/{tiny}_in1k.py"
    for decay, top1 in ((1e-5, 51.6), (1e-6, 51.3)):
        option = f"optim_wrapper.optimizer.weight_decay={decay:.0e}"
        recipe = imagenet(tiny, weight_decay=decay)
        yield Row("Table 7", tiny, f"Weight decay {decay:.0e}", "ImageNet", "top-1", top1, plain, recipe, (option,))
    for batch, top1 in ((1024, 51.5), (256, 51.7)):
        # the learning rate follows the batch (auto_scale_lr)
        recipe = imagenet(tiny, batch=batch, lr=0.4 * batch / 2048)
        option = f"train_dataloader.batch_size={batch // 16}"
        yield Row("Table 7", tiny, f"Batch {batch} on 16 GPUs", "ImageNet", "top-1", top1, plain, recipe, (option,))


SETS = ("food101", "flowers102", "cars", "cub200", "pets")
SET_LABELS = dict(zip(SETS, ("Food101", "Flowers102", "Cars", "Cub200", "Pets"), strict=True))

TRANSFER_LR = {  # the authors' scripts, of one of four GPUs
    "mobilenet_v2_w035": (0.10, 0.08, 0.18, 0.02, 0.01),
    "mobilenet_v3_w035": (0.20, 0.05, 0.10, 0.02, 0.01),
    "mcunet": (0.04, 0.05, 0.25, 0.08, 0.01),
    "proxyless_w035": (0.10, 0.06, 0.20, 0.04, 0.01),
    "mobilenet_v2_tiny": (0.06, 0.08, 0.14, 0.04, 0.06),
}
TRANSFER_DROPOUT = {
    "mobilenet_v2_w035": (0.2, 0.3, 0.5, 0.7, 0.4),
    "mobilenet_v3_w035": (0.2, 0.6, 0.7, 0.8, 0.8),
    "mcunet": (0.1, 0.4, 0.1, 0.6, 0.6),
    "proxyless_w035": (0.2, 0.2, 0.2, 0.7, 0.8),
    "mobilenet_v2_tiny": (0.1, 0.0, 0.2, 0.5, 0.1),
}


def transfer(network: str, data: str) -> Recipe:
    """Fine-tuning on one of ``SETS``: 50 epochs and 5 of warm-up, batch 256 on 4 GPUs, at the size of pre-training."""
    lr = 4 * TRANSFER_LR[network][SETS.index(data)]
    decay = 3e-5 if network == "mobilenet_v3_w035" else 4e-5
    return Recipe(55, 256, 4, lr, decay, NETWORKS[network].size)


def _transfer_rows(table: str, folder: str, network: str, start: str, numbers: tuple[float, ...]) -> Iterator[Row]:
    method = "TinyTL" if folder == "tinytl" else "Fine-tuning"
    for data, top1 in zip(SETS, numbers or [None] * len(SETS), strict=True):
        kind = "_tinytl" if method == "TinyTL" else ""
        config = f"classification/{folder}/{network}{kind}_{data}.py"
        recipe = transfer(network, data)
        yield Row(table, network, method, SET_LABELS[data], "top-1", top1, config, recipe, start=start)


def _tables4_5() -> Iterator[Row]:
    v2, v3 = "mobilenet_v2_w035", "mobilenet_v3_w035"
    for epochs, top1 in ((300, 57.0), (600, 57.5)):
        yield _pretraining("Table 4", v2, "Baseline", top1, epochs)
    # five sets, then AP50 on VOC and COCO
    for network, start, *numbers in (
        (v2, "Baseline", 76.4, 90.8, 76.9, 69.0, 81.9, 60.4, 24.7),
        (v2, "Baseline, 300 epochs", 76.5, 90.3, 75.8, 69.6, 81.7, 60.8, None),
        (v2, "Baseline, 600 epochs", 76.8, 89.7, 74.7, 69.5, 81.7, 61.3, None),
        (v2, "KD", 76.4, 91.6, 78.4, 68.4, 80.3, 60.0, 24.3),
        (v2, "NetAug", 77.4, 92.4, 79.8, 68.8, 82.3, 62.4, 25.4),
        (v2, "NetAug + KD", 77.5, 92.9, 80.4, 68.5, 82.2, 62.1, 25.4),
        (v3, "Baseline", 76.6, 92.1, 75.8, 69.3, 83.1, 63.6, 29.2),
        (v3, "KD", 76.9, 92.6, 77.2, 69.2, 82.9, 63.4, 28.9),
        (v3, "NetAug", 78.3, 93.0, 78.9, 70.4, 84.6, 65.3, 30.7),
        (v3, "NetAug + KD", 77.1, 93.0, 78.6, 70.5, 84.5, 66.0, 30.8),
    ):
        yield from _transfer_rows("Table 4", "transfer", network, start, tuple(numbers[:5]))
        for data, ap50 in zip(("VOC", "COCO"), numbers[5:], strict=True):
            if ap50 is not None:
                yield _detection("Table 4, figure 5", network, "Fine-tuning", data, ap50, start)
    for network, start, *numbers in (
        (v2, "Baseline", 67.33, 89.04, 58.28, 57.75, 78.88),
        (v2, "NetAug", 68.67, 90.40, 60.02, 58.39, 79.37),
        (v3, "Baseline", 67.53, 89.19, 51.18, 57.99, 80.32),
        (v3, "NetAug", 69.74, 90.73, 56.21, 58.94, 82.04),
    ):
        yield from _transfer_rows("Table 5", "tinytl", network, start, tuple(numbers))
    for network in ("mcunet", "proxyless_w035", "mobilenet_v2_tiny"):
        yield from _transfer_rows("authors' code", "transfer", network, "NetAug", ())
    for network in (v2, v3):
        yield _detection("Figure 5", network, "Detection mixup", "VOC", None, "Baseline")


def detection(data: str) -> Recipe:
    """YOLOv3: VOC 200 epochs, batch 64 on 8 GPUs; COCO 120 epochs, batch 128 on 16. Rate and decay are GluonCV's."""
    return Recipe(200, 64, 8, 1e-3, 5e-4, 416) if data == "VOC" else Recipe(120, 128, 16, 2e-3, 5e-4, 416)


def _detection(table: str, network: str, method: str, data: str, ap50: float | None, start: str) -> Row:
    short = {"mobilenet_v2_w035": "mbv2_w035", "mobilenet_v3_w035": "mbv3_w035"}[network]
    mixup = "_mixup" if method == "Detection mixup" else ""
    config = f"yolov3_{short}{mixup}_{data.lower()}.py"
    return Row(table, network, method, data, "AP50", ap50, config, detection(data), start=start)


ROWS = (*_table1(), *_table2(), *_figure3(), *_tables3_6_7(), *_tables4_5())
