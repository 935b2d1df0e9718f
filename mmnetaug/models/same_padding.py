"""Padding of strided convolutions as TensorFlow has it ("SAME"), for networks that are trained to go on a device.

PyTorch's convolutions put equally many zeros on both sides. With an even input, a stride of 2 and a kernel of 3 that is
one row at the top, where "SAME" has one at the bottom. TFLite's convolutions know only "SAME": a network trained with
PyTorch's padding needs a padded copy of the input of every strided convolution, often the largest activation of all.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn
from torch.nn.functional import pad

from mmnetaug.registry import MODELS


class SameConv2d(nn.Conv2d):
    """A convolution whose zeros lie as "SAME" padding puts them; weights are those of ``nn.Conv2d``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        sides: list[int] = []
        for size, kernel, stride, step in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True):
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * step + 1 - size, 0)
            sides = [total // 2, total - total // 2, *sides]  # the last dimension comes first
        return super().forward(pad(x, sides) if any(sides) else x)


@MODELS.register_module()
def SamePadding(model: dict[str, Any], data_preprocessor: dict[str, Any] | None = None) -> nn.Module:
    """Builds a model and gives its strided, zero-padded convolutions "SAME" padding; parameter names stay.

    A choice for training: a network that was trained with the other padding reads its inputs half a pixel off. NetAug
    goes around it: ``dict(type='mmnetaug.NetAug', model=dict(type='mmnetaug.SamePadding', model=...))``.

    Args:
        model: Config of a model or a backbone.
        data_preprocessor: Set by MMEngine's Runner; handed on to the model.
    """
    config = dict(model)
    if data_preprocessor is not None:
        config.setdefault("data_preprocessor", data_preprocessor)
    built = ROOT_MODELS.build(config)
    for module in built.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and _keeps_size(module):
            module.__class__, module.padding = SameConv2d, (0, 0)
    return built


def _keeps_size(conv: nn.Conv2d) -> bool:
    """Whether a convolution pads with as many zeros as its kernel reaches beyond the border."""
    reach = [(kernel - 1) * step for kernel, step in zip(conv.kernel_size, conv.dilation, strict=True)]
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return False
    return all(0 < side == total // 2 for side, total in zip(conv.padding, reach, strict=True))
