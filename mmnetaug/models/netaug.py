"""``mmnetaug.NetAug``: builds the model of an MMDetection or MMPretrain config and makes it width-elastic.

The result has the class and the parameter names of the plain model. In evaluation, and in the base pass of a training
step, it computes exactly what the plain model computes.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models import SemiBaseDetector
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmnetaug.checkpoint import pretrained
from mmnetaug.config import with_preprocessor
from mmnetaug.elastic import Elastic, TraceError, fill_new_channels, make_elastic, tiny_storage
from mmnetaug.registry import MODELS

from .tensor_mode import flatten_tensors, image_channels, tensor_forward

Factors = Sequence[float] | Mapping[str, float]


@MODELS.register_module()
def NetAug(
    model: dict[str, Any],
    width: Factors = (1.0,),
    expand: Factors = (1.0,),
    roles: Mapping[str, str] | None = None,
    input_size: int | Sequence[int] | None = None,
    init: str = "preserving",
    data_preprocessor: dict[str, Any] | None = None,
) -> nn.Module:
    """Builds a model and makes its backbone elastic (Network Augmentation, Cai et al., ICLR 2022).

    Args:
        model: Config of a whole model, whose neck and head then read the widened features, or of a backbone, whose
            outputs stay at base width.
        width: Width factors of stem, stages and last convolution: a list that starts with 1, or the paper's notation
            ``dict(r=3, s=2)`` for s + 1 factors spaced evenly from 1 to r (paper section 3.2).
        expand: Expand factors of channels hidden inside of a block, in the same notations.
        roles: Overrides of roles: group name pattern to "width", "expand" or "base". ``tools/describe.py --json -``
            lists the names.
        input_size: Image size (one number or height, width) to trace the model with; by default 224 for classifiers
            and backbones, and 320 for detectors.
        init: ``"preserving"``: the tiny network starts exactly as the plain one would, and weights that read new
            channels are zero-initialised, so that every augmented network starts as the same function.
            ``"authors"``: Kaiming uniform (a=√5) over the largest network, so that the tiny network starts at another
            scale than without NetAug. Weights of checkpoints in ``init_cfg`` are loaded in both cases.
        data_preprocessor: Set by MMEngine's Runner; passed to the model.

    Returns:
        The elastic model, with the space of its widths as ``.elastic``.

    Raises:
        ValueError: If a factor or an override is invalid, or the model is a semi-supervised detector.
        TraceError: If the model's backbone cannot be traced.
    """
    if init not in ("preserving", "authors"):
        raise ValueError(f"init is 'preserving' or 'authors', not {init!r}")
    built = ROOT_MODELS.build(with_preprocessor(model, data_preprocessor))
    if isinstance(built, SemiBaseDetector):
        raise ValueError(
            f"{type(built).__name__} holds a detector twice, as student and as teacher: wrap the config of its "
            "detector, detector=dict(type='mmnetaug.NetAug', model=...), not the whole"
        )
    if not is_distributed():
        built = revert_sync_batchnorm(built)  # MMEngine's Runner does the same, but cannot convert elastic norms
    size = input_size or (224 if hasattr(built, "head") or not hasattr(built, "extract_feat") else 320)
    height, across = (size, size) if isinstance(size, int) else size
    image_shape = (image_channels(built), height, across)
    whole = isinstance(getattr(built, "backbone", None), nn.Module)
    convert = functools.partial(
        make_elastic,
        built,
        image_shape=image_shape,
        width=_factors(width),
        expand=_factors(expand),
        scope="backbone" if whole else "",
        roles=roles,
    )
    try:
        convert(tensor_forward)
    except TraceError as error:
        if not whole:
            raise
        print_log(f"NetAug: {error}. Only the inside of its backbone is augmented.", "current", logging.WARNING)
        convert(lambda model, image: flatten_tensors(model.backbone(image)))
    if not any(len(group.widths) > 1 for group in built.elastic.groups):
        print_log(f"NetAug: nothing in {type(built).__name__} is augmented", "current", logging.WARNING)
    if hasattr(built, "init_weights"):
        built.init_weights = functools.partial(_init_weights, built, init)
    built.register_forward_pre_hook(_guard)
    return built


def _factors(spelling: Factors) -> tuple[float, ...]:
    if isinstance(spelling, Mapping):
        if set(spelling) != {"r", "s"}:
            raise ValueError(f"factors are a list or dict(r=..., s=...), got {dict(spelling)}")
        return tuple(torch.linspace(1, spelling["r"], int(spelling["s"]) + 1, dtype=torch.float64).tolist())
    return tuple(float(factor) for factor in spelling)


def _init_weights(model: nn.Module, init: str) -> None:
    """Runs the plain model's own initialisation on the tiny network, then initialises the additional channels.

    Only the tiny network is loaded from a checkpoint in ``init_cfg``. ``load_from`` loads all channels of a checkpoint;
    if that holds a tiny network, the others are filled as by ``init="preserving"``.
    """
    with tiny_storage(model):
        type(model).init_weights(model)
    fill_new_channels(model, preserving=init == "preserving")
    if init == "authors":
        _init_as_the_authors(model)


def _init_as_the_authors(model: nn.Module) -> None:
    """Kaiming uniform by the fan of the *largest* network's layers, except for layers loaded from a checkpoint."""
    filled = {part for module in model.modules() if any(pretrained(module)) for part in module.modules()}
    for layer in model.modules():
        if layer not in filled and isinstance(layer, nn.Conv2d):
            weight = layer.stored("weight") if isinstance(layer, Elastic) else layer.weight
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def _guard(model: nn.Module, inputs: Any) -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "torch.compile would recompile an elastic model for every sampled network: leave compile out of the "
            "config, or compile the plain model with the tiny checkpoint."
        )
    if model.training and torch.is_grad_enabled() and not model.elastic.driven:
        raise RuntimeError(
            f"{type(model).__name__} was made elastic by mmnetaug.NetAug, but is trained by an optimizer wrapper that "
            "adds no augmented pass: set optim_wrapper.type to 'mmnetaug.NetAugOptimWrapper' or "
            "'mmnetaug.NetAugAmpOptimWrapper', or train the plain model."
        )
