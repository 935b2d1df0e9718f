"""TensorFlow's "SAME" padding of strided convolutions, for networks that are to be deployed with TFLite.

PyTorch's convolutions pad both sides equally. With an even input, a stride of 2 and a kernel of 3, this uses one row of
zeros at the top, whereas "SAME" has one at the bottom. TFLite's convolutions support only "SAME": a network trained
with PyTorch's padding needs a padded copy of the input of every strided convolution, often the largest activation.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn
from torch.nn.functional import pad

from mmnetaug.config import with_preprocessor
from mmnetaug.registry import MODELS


def same_sides(size: int, kernel: int, stride: int, step: int) -> list[int]:
    """Zeros that "SAME" padding puts before and after ``size`` values; ``step`` is the dilation."""
    total = max((ceil(size / stride) - 1) * stride + (kernel - 1) * step + 1 - size, 0)
    return [total // 2, total - total // 2]


class SameConv2d(nn.Conv2d):
    """``nn.Conv2d`` with "SAME" padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        sides: list[int] = []
        for size, kernel, stride, step in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True):
            sides = [*same_sides(size, kernel, stride, step), *sides]  # the last dimension comes first
        return super().forward(pad(x, sides) if any(sides) else x)


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
            module.__class__, module.padding = SameConv2d, (0, 0)
    return built


def _keeps_size(conv: nn.Conv2d) -> bool:
    """Whether a convolution pads by half of its kernel, so that only the stride changes the size."""
    reach = [(kernel - 1) * step for kernel, step in zip(conv.kernel_size, conv.dilation, strict=True)]
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return False
    return all(0 < side == total // 2 for side, total in zip(conv.padding, reach, strict=True))
