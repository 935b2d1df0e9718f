"""What the study's runs add to the product: small networks, CIFAR-10 in memory, variants of the step to compare with.

A micro network trains on 32-pixel images faster than a pipeline of one image at a time can hand them over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmcv import imread
from mmengine.utils import scandir
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmnetaug import NetAug, NetAugOptimWrapper
from mmnetaug.elastic import Elastic, fill_new_channels
from mmnetaug.models.tinyml import ARCHITECTURES, Architecture, Stage  # before mmpretrain: see mmnetaug/environment.py
from mmnetaug.registry import MODELS as MMNETAUG_MODELS
from mmnetaug.registry import OPTIM_WRAPPERS

from mmpretrain.datasets import CIFAR10  # isort: skip
from mmpretrain.datasets.categories import CIFAR10_CATEGORIES  # isort: skip
from mmpretrain.models import ClsDataPreprocessor  # isort: skip
from mmpretrain.registry import DATASETS, MODELS  # isort: skip
from mmpretrain.structures import DataSample  # isort: skip

ARCHITECTURES["micro"] = Architecture(  # MobileNetV2 in small, at stride 8: its first stage does not expand either
    stem=8,
    stages=(
        Stage(8, [3], 2, expand=[1]),
        Stage(16, [3, 3], 1, expand=[4, 4]),
        Stage(24, [3, 3], 2, expand=[4, 4]),
    ),
    last=0,
    features=64,
)


@DATASETS.register_module()
class InMemoryCifar10(Dataset):
    """CIFAR-10, from class folders of image files where there are such, else by mmpretrain's ``CIFAR10`` (downloads).

    Args:
        data_root: Holds ``train/<class>/`` and ``test/<class>/``, or the files of the data set's own python version.
        split: "train" or "test".
        images_per_class: Keeps the first so many of each class alone.
    """

    def __init__(self, data_root: str, split: str, images_per_class: int | None = None) -> None:
        self.metainfo = dict(classes=CIFAR10_CATEGORIES)
        folder = Path(data_root) / split
        if folder.is_dir():
            images, labels = _read_folders(folder)
        else:
            stock = CIFAR10(data_root, split)
            images = np.stack([sample["img"] for sample in stock])
            labels = np.array([sample["gt_label"] for sample in stock])
        if images_per_class is not None:
            kept = np.concatenate([np.flatnonzero(labels == c)[:images_per_class] for c in range(10)])
            images, labels = images[kept], labels[kept]
        self.images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=self.images[index], data_samples=DataSample().set_gt_label(int(self.labels[index])))


def _read_folders(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for label, name in enumerate(CIFAR10_CATEGORIES):
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"{folder} has no folder {name}: CIFAR-10 is laid out as <split>/<class>/<image>")
        files = sorted(scandir(folder / name, (".jpg", ".jpeg", ".png")))
        images += [imread(str(folder / name / file), channel_order="rgb") for file in files]
        labels += [label] * len(files)
    return np.stack(images), np.array(labels)


@MODELS.register_module()
class CropFlipPreprocessor(ClsDataPreprocessor):
    """``ClsDataPreprocessor`` that also shifts training images by up to four pixels, and mirrors half of them.

    Args:
        enlarge: Factor by which images are enlarged afterwards.
    """

    def __init__(self, *args: Any, enlarge: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.enlarge = enlarge

    def forward(self, data: dict, training: bool = False) -> dict:
        """Returns normalised images (N, 3, H, W) and their data samples."""
        data = super().forward(data, training)
        if training:
            data["inputs"] = crop_and_flip(data["inputs"])
        if self.enlarge > 1:
            data["inputs"] = F.interpolate(data["inputs"], scale_factor=self.enlarge, mode="bilinear")
        return data


def crop_and_flip(images: Tensor, padding: int = 4) -> Tensor:
    """Pads images (N, C, H, W) with zeros, crops each at a random place, and mirrors each with probability 1/2."""
    count, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4).permute(0, 2, 3, 1)  # so that a pixel is one row to copy
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1))
    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    columns = left + torch.where(torch.rand(count, 1) < 0.5, columns, width - 1 - columns)
    numbers = torch.arange(count).view(-1, 1, 1)
    place = (numbers * padded.shape[1] + rows[:, :, None]) * padded.shape[2] + columns[:, None, :]
    pixels = padded.reshape(-1, channels).index_select(0, place.flatten().to(images.device))
    return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)


@MMNETAUG_MODELS.register_module()
def MatchedNetAug(**config: Any) -> nn.Module:
    """``mmnetaug.NetAug`` as it first was: weights that read new channels start at the scale of the tiny network's."""
    model = NetAug(**config)
    init_weights = model.init_weights

    def then_fill() -> None:
        init_weights()
        fill_new_channels(model, preserving=False)

    model.init_weights = then_fill
    return model


@OPTIM_WRAPPERS.register_module()
class MeasuringOptimWrapper(NetAugOptimWrapper):
    """Logs, every 50 iterations, the cosine between base and augmented gradients on the tiny network's weights."""

    def _augmented_pass(self, args: tuple, kwargs: dict) -> Any:
        augmented = super()._augmented_pass(args, kwargs)
        self._gradient = shared_gradients(self._model) if self._inner_count % 50 == 0 else None
        return augmented

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Of either pass; the base pass comes second, and knows the augmented gradient."""
        super().backward(loss, **kwargs)
        augmented, self._gradient = getattr(self, "_gradient", None), None
        if augmented is not None:
            base = shared_gradients(self._model) - augmented
            self.message_hub.update_scalar("train/gradient_cosine", F.cosine_similarity(base, augmented, dim=0).item())


@OPTIM_WRAPPERS.register_module()
class TwoNetworksOptimWrapper(NetAugOptimWrapper):
    """Samples two augmented networks in every step; the losses of both count in full."""

    def _augmented_pass(self, args: tuple, kwargs: dict) -> Any:
        seed = self.seed
        super()._augmented_pass(args, kwargs)
        self.seed = seed + 1_000_003
        augmented = super()._augmented_pass(args, kwargs)
        self.seed = seed
        return augmented


@OPTIM_WRAPPERS.register_module()
class SharedStatisticsOptimWrapper(NetAugOptimWrapper):
    """Both passes update the running statistics, as in the authors' code; they are to be re-estimated."""

    def _attach(self, model: nn.Module) -> None:
        super()._attach(model)
        self._counting = []


def shared_gradients(model: nn.Module) -> Tensor:
    """Gradients of the tiny network's weights, as one vector; weights that have none yet are left out."""
    gradients = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            gradient = parameter.grad
            if gradient is not None and isinstance(module, Elastic) and name in module.elastic_axes:
                gradient = gradient[module.base_block(name)]
            if gradient is not None:
                gradients.append(gradient.flatten())
    return torch.cat(gradients)
