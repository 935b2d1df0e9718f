"""Runs any model from images to raw tensors, for tracing, cost counting and export.

MMEngine models select their output by ``mode``, and mmdet's two-stage detectors cannot run in tensor mode without
proposals. :func:`tensor_forward` runs every part that depends on the image alone.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

DENSE_HEADS = ("rpn_head", "bbox_head")
"""Heads of mmdet's detectors whose ``forward`` takes only the features."""

DETECTOR_HEADS = (*DENSE_HEADS, "roi_head", "mask_head", "semantic_head", "panoptic_head")
"""Names of the parts of mmdet's detectors that read the features."""


def tensor_forward(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Runs ``model`` from a preprocessed batch to its raw outputs, without losses, decoding or NMS.

    * mmdet detectors: backbone, neck and the dense heads. If other parts read the features too (a RoI head, a mask
      head, a transformer: see :func:`untraced_readers`), the features are returned as well, before the outputs of the
      dense heads, so that they count as outputs of the graph.
    * Models with a ``mode`` (mmpretrain classifiers, mmseg segmentors): ``model(x, mode="tensor")``.
    * All others, such as a backbone: ``model(x)``.

    Args:
        model: The model, in train or eval mode, which is not changed.
        x: Preprocessed images, shape ``(N, C, H, W)``.

    Returns:
        All tensors of the output in order, nested containers flattened.

    Raises:
        TypeError: The model returns no tensor.
    """
    if is_detector(model):
        features = model.extract_feat(x)
        outputs = [getattr(model, name)(features) for name in dense_heads(model)]
        tensors = flatten_tensors([features, outputs] if untraced_readers(model) else outputs)
    elif "mode" in inspect.signature(model.forward).parameters:
        tensors = flatten_tensors(model(x, mode="tensor"))
    else:
        tensors = flatten_tensors(model(x))
    if not tensors:
        raise TypeError(f"{type(model).__name__} returned no tensor when run on images alone")
    return tensors


def image_channels(model: nn.Module) -> int:
    """Number of image channels: that of the data preprocessor's means, or else 3."""
    mean: Tensor | None = getattr(getattr(model, "data_preprocessor", None), "mean", None)
    return 3 if mean is None else mean.numel()


def is_detector(model: nn.Module) -> bool:
    """Whether ``model`` is one of mmdet's detectors: it extracts features and has heads by mmdet's names."""
    return hasattr(model, "extract_feat") and bool(_heads(model))


def dense_heads(model: nn.Module) -> list[str]:
    """Names of a detector's heads that need only the features."""
    if hasattr(model, "forward_transformer"):  # the DETR family: bbox_head reads the decoder, not the features
        return []
    # Heads without a forward method (Sparse R-CNN's learned proposals, Cascade RPN) cannot be run.
    return [n for n in _heads(model) if n in DENSE_HEADS and _runs_on_features(getattr(model, n))]


def untraced_readers(model: nn.Module) -> list[str]:
    """Names of a detector's parts that read the features but are not run by :func:`tensor_forward`."""
    if not is_detector(model):
        return []
    if hasattr(model, "forward_transformer"):
        return ["transformer", *_heads(model)]
    return [n for n in _heads(model) if n not in dense_heads(model)]


def flatten_tensors(value: Any) -> tuple[Tensor, ...]:
    """All tensors in nested lists, tuples and dicts, in order; everything else is dropped."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return ()
    return tuple(tensor for item in value for tensor in flatten_tensors(item))


def _heads(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_children() if name in DETECTOR_HEADS]


def _runs_on_features(head: nn.Module) -> bool:
    required = [
        p
        for p in inspect.signature(head.forward).parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    return len(required) == 1
