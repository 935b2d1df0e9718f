"""Sets and finds the input size of a config."""

from __future__ import annotations

import copy

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch import nn
from torch.nn.functional import pad

from mmnetaug.analysis.cost import SIZE_ARGUMENTS, find_input_shape, pipeline_size
from mmnetaug.config import nested, type_name
from mmnetaug.errors import UserError

from .build import reported_as_user_error


def set_input_size(cfg: Config, size: int, splits: tuple[str, ...] = ("val", "test")) -> None:
    """Sets the input size of a config's pipelines to ``size`` × ``size``.

    All transforms with a size are scaled: a crop of 224 after an edge of 256 becomes 112 after 128. If a batch
    augmentation draws the training size, its range and its input are scaled by the factor of the test pipeline.

    Args:
        cfg: A whole config, changed in place.
        size: Height and width in pixels.
        splits: Splits whose pipelines are changed.

    Raises:
        UserError: The data preprocessor would pad to another size, or no transform sets a size.
    """
    model = cfg.model
    while "data_preprocessor" not in model and isinstance(model.get("model"), dict):  # inside of NetAug, for example
        model = model["model"]
    preprocessor = {**(cfg.get("data_preprocessor") or {}), **(model.get("data_preprocessor") or {})}
    divisor = preprocessor.get("pad_size_divisor", 1)
    if size < 1 or size % divisor:
        raise UserError(
            f"input size {size} is not a multiple of {divisor}, to which this network's data preprocessor pads: "
            f"take {max(size // divisor, 1) * divisor} or {(size // divisor + 1) * divisor}"
        )
    drawn = [augment for augment in preprocessor.get("batch_augments") or [] if "random_size_range" in augment]
    tested_at = pipeline_size(cfg)
    for split in splits:
        if not cfg.get(f"{split}_dataloader"):
            continue
        found = _transforms_with_size(cfg, split)
        if not found:
            raise UserError(f"no transform of the {split} pipeline sets a size, so it cannot be changed")
        for pipeline in _pipelines(cfg, split):
            _refuse_other_sizes(pipeline)
            if split != "train":
                _keep_original_boxes(pipeline)
        multi_scale = split == "train" and drawn
        ratio = size / min(tested_at if multi_scale and tested_at else _edges(*found[-1]))
        for transform, key in found:
            scaled = tuple(round(edge * ratio) for edge in _edges(transform, key))
            if isinstance(transform[key], int):
                transform[key] = scaled[0]
            else:
                transform[key] = scaled if multi_scale else (size, size)
        for augment in drawn if multi_scale else ():
            step = augment.get("size_divisor", 32)  # mmdet's default
            augment["random_size_range"] = tuple(
                max(round(edge * ratio / step), 1) * step for edge in augment["random_size_range"]
            )


def _keep_original_boxes(pipeline: list[dict]) -> None:
    """Moves the loading of annotations to the end, since predictions are in coordinates of the original image."""
    [packing] = pipeline[-1:]
    loading = [step for step in pipeline if type_name(step) == "LoadAnnotations"]
    pipeline[:] = [step for step in pipeline[:-1] if step not in loading] + loading + [packing]


def _refuse_other_sizes(pipeline: list[dict]) -> None:
    for transform in reversed(pipeline):
        kind = type_name(transform)
        if kind in SIZE_ARGUMENTS and kind != "Pad":  # this overrides earlier transforms
            return
        if kind not in SIZE_ARGUMENTS and any(transform.get(key) for key in ("scale", "img_scale", "crop_size")):
            raise UserError(f"{kind} of the pipeline sets a size too, which cannot be changed: set it in the config")


def _pipelines(cfg: Config, split: str) -> list[list[dict]]:
    return [part["pipeline"] for part in nested(cfg.get(f"{split}_dataloader")) if part.get("pipeline")]


def _transforms_with_size(cfg: Config, split: str) -> list[tuple[dict, str]]:
    transforms = [one for pipeline in _pipelines(cfg, split) for one in pipeline]
    keyed = [(one, SIZE_ARGUMENTS.get(type_name(one), "")) for one in transforms]
    return [(one, key) for one, key in keyed if one.get(key) is not None]


def _edges(transform: dict, key: str) -> tuple[int, ...]:
    value = transform[key]
    return (value,) if isinstance(value, int) else tuple(value)


def shape_of_images(cfg: Config, model: nn.Module) -> tuple[int, int, int, int]:
    """Shape ``(1, C, H, W)`` of the network's input, by the test pipeline or, if that sets no size, as for CIFAR-10,
    by the first test image.

    Raises:
        UserError: Neither gives a size.
    """
    size = None
    with reported_as_user_error("the size of the input is unknown"):
        if pipeline_size(cfg) is None:
            init_default_scope(cfg.get("default_scope") or "mmengine")
            size = tuple(DATASETS.build(copy.deepcopy(cfg.test_dataloader.dataset))[0]["inputs"].shape[-2:])
        return find_input_shape(cfg, model, size)


def fix_input(model: nn.Module, size: tuple[int, int]) -> None:
    """Makes a model's data preprocessor pad every batch to one size, as a device with a fixed input requires.

    Otherwise, pipelines that keep the aspect ratio give batches of several shapes.

    Args:
        model: A detector or classifier, changed in place.
        size: ``(H, W)``; zeros, the mean of images, are added at the bottom and on the right.
    """

    def pad_batch(module: nn.Module, args: tuple, data: dict) -> dict:
        height, width = data["inputs"].shape[-2:]
        if height > size[0] or width > size[1]:
            raise UserError(
                f"the pipeline gives images of {height}x{width}, larger than the input, {size[0]}x{size[1]}: "
                "--size N fits all of them into a square"
            )
        data["inputs"] = pad(data["inputs"], (0, size[1] - width, 0, size[0] - height))
        for sample in data.get("data_samples") or []:
            if "batch_input_shape" in sample:
                sample.set_metainfo(dict(batch_input_shape=tuple(size)))
        return data

    model.data_preprocessor.register_forward_hook(pad_batch)
