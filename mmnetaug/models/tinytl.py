"""Tiny transfer learning (Cai et al., "TinyTL", 2020; the NetAug paper's table 5): fine-tuning with little memory.

A training step stores the inputs of layers whose *weights* are trained. Here weights are frozen, and only biases, the
classifier and small *lite residual* modules are trained, which read feature maps of half the resolution.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import Conv2d as MMCVConv2d
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS as ROOT_MODELS
from mmpretrain.models.backbones.mobilenet_v2 import InvertedResidual
from mmpretrain.models.utils import InvertedResidual as InvertedResidualSE
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.nn.modules.batchnorm import _BatchNorm

from mmnetaug.config import with_preprocessor
from mmnetaug.registry import MODELS

from .tinyml import InvertedBottleneck

BLOCKS = (InvertedBottleneck, InvertedResidual, InvertedResidualSE)
"""Blocks that get a lite residual module."""


@MODELS.register_module()
def TinyTL(
    model: dict[str, Any], input_size: int, groups: int = 2, data_preprocessor: dict[str, Any] | None = None
) -> nn.Module:
    """Builds a classifier and prepares it for tiny transfer learning.

    Trained are its head, and in its backbone the biases and one :class:`LiteResidual` per inverted bottleneck. Batch
    norms keep their statistics, convolutions with frozen weights do not store their input (PyTorch's own always do),
    and ReLUs store one byte per value, without which nothing would be saved. Pre-trained weights of the plain
    classifier fit (``load_from``): the new modules, called ``lite_residual``, are zero-initialised, so that the network
    starts as the pre-trained one.

    Args:
        model: Config of a classifier whose backbone consists of inverted bottlenecks.
        input_size: Side of the square images in pixels; kernels of lite residuals shrink to fit their feature maps.
        groups: Groups of the lite residuals' convolutions.
        data_preprocessor: Set by MMEngine's Runner; passed to the model.

    Returns:
        The classifier.

    Raises:
        ValueError: The backbone has no inverted bottlenecks, or convolutions of a custom class.
    """
    classifier = ROOT_MODELS.build(with_preprocessor(model, data_preprocessor))
    backbone = classifier.backbone
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad = name.endswith("bias")
    for name, module in backbone.named_modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = FrozenNorm
        elif type(module) in (nn.Conv2d, MMCVConv2d):
            module.__class__ = FrozenConv
        elif isinstance(module, nn.Conv2d):  # a subclass may pad differently
            raise ValueError(f"TinyTL freezes plain convolutions, and {name} is a {type(module).__name__}")
        elif isinstance(module, nn.ReLU | nn.ReLU6):
            module.__class__ = _MASKED[type(module)]
    _add_lite_residuals(backbone, input_size, groups)
    backbone.init_weights = functools.partial(_init_weights, backbone)
    return classifier


def _init_weights(backbone: nn.Module) -> None:
    """Runs the backbone's own initialisation, which also changes lite residuals, and then theirs."""
    type(backbone).init_weights(backbone)
    for module in backbone.modules():
        if isinstance(module, LiteResidual):
            module.init_weights()


class LiteResidual(nn.Module):
    """A cheap branch parallel to an inverted bottleneck, at half the resolution.

    Average pooling by 2, a grouped convolution with norm and ReLU, a 1x1 convolution with a zero-initialised norm, and
    bilinear upsampling.

    Attributes:
        starts_anew: Marks modules that no pre-trained checkpoint holds.

    Args:
        in_channels: Channels of the block's input.
        out_channels: Channels of its output.
        stride: Stride of the block.
        kernel: Kernel size of the grouped convolution.
        groups: Groups of that convolution.
    """

    starts_anew = True

    def __init__(self, in_channels: int, out_channels: int, stride: int, kernel: int, groups: int) -> None:
        super().__init__()
        norm = dict(type="BN")
        self.conv = ConvModule(
            in_channels, in_channels, kernel, stride, padding=kernel // 2, groups=groups, norm_cfg=norm
        )
        self.project = ConvModule(in_channels, out_channels, 1, norm_cfg=norm, act_cfg=None)
        self.init_weights()

    def init_weights(self) -> None:
        """Zero-initialises the scale of the last norm, which a parent's initialiser may have changed."""
        nn.init.zeros_(self.project.norm.weight)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, *size)."""
        x = self.project(self.conv(F.avg_pool2d(x, 2, ceil_mode=True)))
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class FrozenNorm(nn.BatchNorm2d):
    """Batch norm with frozen statistics and scale, which stores nothing for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (N, C, H, W)."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class _Convolution(torch.autograd.Function):
    """Convolution with a constant weight, whose backward pass needs only the shape of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *settings: Any) -> Tensor:
        ctx.shape, ctx.settings = x.shape, settings
        ctx.save_for_backward(weight)
        return F.conv2d(x, weight, None, *settings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.saved_tensors[0].to(gradient.dtype)  # under autocast the two differ
        return (conv2d_input(ctx.shape, weight, gradient, *ctx.settings), None, None, None, None, None)


class FrozenConv(nn.Conv2d):
    """Convolution with a frozen weight and a trained bias, if it has one."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H', W')."""
        settings = (self.stride, self.padding, self.dilation, self.groups)
        if x.requires_grad:
            x = _Convolution.apply(x, self.weight, *settings)
        else:
            x = F.conv2d(x, self.weight, None, *settings)
        return x if self.bias is None else x + self.bias.view(1, -1, 1, 1)


class _Clamp(torch.autograd.Function):
    """Clamps to [0, high] and stores one byte per value instead of four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < high))
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (passes,) = ctx.saved_tensors
        return gradient * passes, None


class _MaskedReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return _Clamp.apply(x, float("inf")) if x.requires_grad else super().forward(x)


class _MaskedReLU6(nn.ReLU6):
    def forward(self, x: Tensor) -> Tensor:
        return _Clamp.apply(x, 6.0) if x.requires_grad else super().forward(x)


_MASKED = {nn.ReLU: _MaskedReLU, nn.ReLU6: _MaskedReLU6}


def _add_lite_residuals(backbone: nn.Module, input_size: int, groups: int) -> None:
    """Adds a lite residual to every inverted bottleneck; a trial run gives the sizes."""
    shapes: dict[nn.Module, tuple[torch.Size, torch.Size]] = {}

    def note(block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        shapes[block] = inputs[0].shape, output.shape

    hooks = [block.register_forward_hook(note) for block in backbone.modules() if isinstance(block, BLOCKS)]
    with torch.no_grad():
        backbone(torch.zeros(1, 3, input_size, input_size))
    for hook in hooks:
        hook.remove()
    if not shapes:
        raise ValueError(f"TinyTL adapts inverted bottlenecks, and {type(backbone).__name__} has none")
    for block, ((_, read, height, _), (_, made, out_height, _)) in shapes.items():
        pooled = -(-height // 2)
        kernel = min(5, pooled - (pooled + 1) % 2)  # odd, and not larger than the pooled map
        stride = 1 if out_height == height else 2
        block.lite_residual = LiteResidual(read, made, stride, kernel, groups)
        block.register_forward_hook(_add)


def _add(block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + block.lite_residual(inputs[0], output.shape[-2:])
