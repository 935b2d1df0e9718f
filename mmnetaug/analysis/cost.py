"""Counts the multiply-accumulates and parameters of a network exactly, for one image.

As in the paper, convolutions, linear layers and matrix products count; biases, norms and activations do not.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmengine.config import Config
from torch import nn

from mmnetaug.config import first_pipeline, type_name
from mmnetaug.elastic import base_state_dict, find_spaces
from mmnetaug.models.tensor_mode import image_channels, untraced_readers

from .operators import record


@dataclass(frozen=True)
class Cost:
    """Cost of one network at one input size.

    Attributes:
        macs: Multiply-accumulates of one image.
        params: Number of parameters, see :func:`count_params`.
        input_shape: ``(1, C, H, W)``.
        not_counted: Parts of a detector that are not in ``macs``, because their cost depends on proposals or queries
            (``roi_head``, ...).
    """

    macs: int
    params: int
    input_shape: tuple[int, int, int, int]
    not_counted: tuple[str, ...] = ()


def count_cost(model: nn.Module, input_shape: tuple[int, int, int, int]) -> Cost:
    """Counts the multiply-accumulates and parameters of a model in eval mode.

    Of an elastic model, the tiny network is counted, whatever the current widths.

    Args:
        model: Detector, classifier or backbone, on any device. Its modes, widths and buffers are restored.
        input_shape: ``(1, C, H, W)``.

    Raises:
        ValueError: The model cannot be recorded, see :func:`mmnetaug.analysis.operators.record`.
    """
    recording = record(model, input_shape)
    return Cost(
        macs=sum(operator.macs for operator in recording.operators),
        params=count_params(model),
        input_shape=input_shape,
        not_counted=tuple(untraced_readers(model)),
    )


def count_params(model: nn.Module) -> int:
    """Number of parameters, including frozen ones but no buffers; of an elastic model, of its tiny network."""
    if not find_spaces(model):
        return sum(parameter.numel() for parameter in model.parameters())
    tiny = base_state_dict(model)
    return sum(tiny[name].numel() for name, _ in model.named_parameters())


def find_input_shape(cfg: Config, model: nn.Module, size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
    """The input shape that results from the test pipeline of a config.

    Args:
        cfg: Config of mmdet or mmpretrain.
        model: Its model, whose data preprocessor sets the number of channels and the padding.
        size: ``(H, W)`` in place of the pipeline's.

    Returns:
        ``(1, C, H, W)``. If the pipeline keeps the aspect ratio, ``H × W`` is the box that images are fitted into, so
        the cost is that of the largest image.

    Raises:
        ValueError: No transform of the pipeline sets a size.
    """
    preprocessor = getattr(model, "data_preprocessor", None)
    height, width = size or pipeline_size(cfg) or (0, 0)
    if not height:
        raise ValueError(
            "the input size is not in this config: no transform of its test pipeline sets one (tools/describe.py "
            "--size N counts at any)"
        )
    if size is None:
        divisor = getattr(preprocessor, "pad_size_divisor", 1)
        height, width = (-(-n // divisor) * divisor for n in (height, width))
    return 1, image_channels(model), height, width


# mmcv and mmdet use (width, height), mmpretrain one number for both edges or the short edge.
SIZE_ARGUMENTS = {
    "Resize": "scale",
    "FixScaleResize": "scale",
    "ResizeEdge": "scale",
    "Pad": "size",
    "CenterCrop": "crop_size",
    "EfficientNetCenterCrop": "crop_size",
    "RandomResizedCrop": "scale",
}


def pipeline_size(cfg: Config) -> tuple[int, int] | None:
    """``(H, W)`` after the last transform of the test pipeline, or else validation pipeline, that sets a size."""
    size = None
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader") or {}
    for transform in first_pipeline(loader.get("dataset") or {}) or []:
        value = transform.get(SIZE_ARGUMENTS.get(type_name(transform), ""))
        if value is not None:
            size = (value, value) if isinstance(value, int) else (value[1], value[0])
    return size
