"""What a network costs: multiply-accumulates and parameters, counted exactly for one image.

The counting convention is the paper's: convolutions, linear layers and matrix products count, biases, norms and
activations do not.
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
        not_counted: Parts of a detector whose cost depends on the proposals or the queries (``roi_head``, ...), so
            that ``macs`` leaves them out.
    """

    macs: int
    params: int
    input_shape: tuple[int, int, int, int]
    not_counted: tuple[str, ...] = ()


def count_cost(model: nn.Module, input_shape: tuple[int, int, int, int]) -> Cost:
    """Count the multiply-accumulates and parameters of a model in eval mode.

    An elastic model is counted as its tiny network, whatever widths it is set to.

    Args:
        model: Detector, classifier or backbone, on any device. Left as it was: modes, widths and buffers.
        input_shape: ``(1, C, H, W)``.

    Raises:
        ValueError: The model cannot run at that input size, or uses an operator that has no formula (the compiled
            operators of mmcv, such as deformable convolution), so that a count would be wrong.
    """
    recording = record(model, input_shape)
    return Cost(
        macs=sum(operator.macs for operator in recording.operators),
        params=count_params(model),
        input_shape=tuple(input_shape),
        not_counted=tuple(untraced_readers(model)),
    )


def count_params(model: nn.Module) -> int:
    """Number of parameters, frozen ones included, buffers not; of an elastic model those of its tiny network."""
    if not find_spaces(model):
        return sum(parameter.numel() for parameter in model.parameters())
    tiny = base_state_dict(model)
    return sum(tiny[name].numel() for name, _ in model.named_parameters())


def find_input_shape(cfg: Config, model: nn.Module, size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
    """The shape in which the test pipeline of a config hands one image to its model.

    Args:
        cfg: Config of mmdet or mmpretrain.
        model: The model built from it; its data preprocessor knows the number of channels and the padding.
        size: ``(H, W)`` in place of the pipeline's.

    Returns:
        ``(1, C, H, W)``. Where the pipeline keeps the aspect ratio, ``H × W`` is the box that images are fitted
        into, so the cost is that of the largest image.

    Raises:
        ValueError: No transform of the pipeline sets a size.
    """
    preprocessor = getattr(model, "data_preprocessor", None)
    height, width = size or _pipeline_size(cfg)
    if size is None:
        divisor = getattr(preprocessor, "pad_size_divisor", 1)
        height, width = (-(-n // divisor) * divisor for n in (height, width))
    return 1, image_channels(model), height, width


# mmcv and mmdet give sizes as (width, height), mmpretrain gives one number for both or the short edge.
SIZE_ARGUMENTS = {
    "Resize": "scale",
    "FixScaleResize": "scale",
    "ResizeEdge": "scale",
    "Pad": "size",
    "CenterCrop": "crop_size",
    "EfficientNetCenterCrop": "crop_size",
    "RandomResizedCrop": "scale",
}


def _pipeline_size(cfg: Config) -> tuple[int, int]:
    """``(H, W)`` after the last transform of the test (or else validation) pipeline that sets a size."""
    size = None
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader") or {}
    for transform in first_pipeline(loader.get("dataset") or {}) or []:
        value = transform.get(SIZE_ARGUMENTS.get(type_name(transform), ""))
        if value is not None:
            size = (value, value) if isinstance(value, int) else tuple(value)
    if size is None:
        raise ValueError(
            "the input size is not in this config: no transform of its test pipeline sets one (tools/describe.py "
            "--input-shape H W counts at any)"
        )
    return size[1], size[0]
