"""TensorFlow's "SAME" padding of strided convolutions, for networks that are to be deployed with TFLite.

PyTorch's convolutions pad both sides equally. With an even input, a stride of 2 and a kernel of 3, this uses one row of
zeros at the top, whereas "SAME" has one at the bottom. TFLite's convolutions support only "SAME": a network trained
with PyTorch's padding needs a padded copy of the input of every strided convolution, often the largest activation.
"""

from __future__ import annotations

from typing import Any

from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmnetaug.config import with_preprocessor
from mmnetaug.registry import MODELS


@MODELS.register_module()
def SamePadding(model: dict[str, Any], data_preprocessor: dict[str, Any] | None = None) -> nn.Module:
    """Builds a model and gives its strided, zero-padded convolutions "SAME" padding; parameter names stay.

    To be used in training: in a network that was trained with PyTorch's padding it shifts inputs by half a pixel. With
    NetAug: ``dict(type='mmnetaug.NetAug', model=dict(type='mmnetaug.SamePadding', model=...))``.

    Args:
        model: Config of a model or a backbone.
        data_preprocessor: Set by MMEngine's Runner; passed to the model.
    """
    built = ROOT_MODELS.build(with_preprocessor(model, data_preprocessor))
    for module in built.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and _keeps_size(module):
            module.__class__, module.padding = Conv2dAdaptivePadding, (0, 0)
    return built


def _keeps_size(conv: nn.Conv2d) -> bool:
    """Whether a convolution pads by half of its kernel, so that only the stride changes the size."""
    reach = [(kernel - 1) * step for kernel, step in zip(conv.kernel_size, conv.dilation, strict=True)]
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return False
    return all(0 < side == total // 2 for side, total in zip(conv.padding, reach, strict=True))
