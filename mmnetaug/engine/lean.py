"""What a training step on a CPU spends without need, taken out of it. Float32 results stay what they are, bit for bit.

Small networks spend most of a step on moving activations. Two things move them for no reason:

* In-place activations whose gradient is written in terms of their input (ReLU6, Hardswish, SiLU): autograd copies the
  input before it is overwritten.
* On Linux, glibc gives large blocks back to the system as soon as they are freed, and the system clears every page of
  the next ones. A network on a CPU frees and allocates each of its activations in every step.

And in bfloat16, two gradients of depthwise convolutions have no fast kernel on CPUs: that of the input behind a stride
takes up to 100 times as long as in float32, that of a kernel larger than 3x3 three times. They are computed in float32,
which is also the more exact.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import torch
from torch import Tensor, nn

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


class _ReLU6(torch.autograd.Function):
    """In-place ReLU6 that remembers its output, which the next layer keeps anyway: 0 and 6 tell what was cut off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.clamp_(0, 6)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, out, 0, 6)


class LeanReLU6(nn.ReLU6):
    """``nn.ReLU6(inplace=True)`` without the copy; like ``nn.ReLU``, its output must not be overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        """Clamp ``x``, of any shape, to 0..6 in place."""
        return _ReLU6.apply(x) if torch.is_grad_enabled() and x.requires_grad else super().forward(x)


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution whose slow gradients are computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *settings: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        return torch.nn.functional.conv2d(x, weight, None, *settings, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.settings

        def derive(gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
            settings = (None, stride, padding, dilation, False, [0, 0], x.shape[1], [*wanted, False])
            return torch.ops.aten.convolution_backward(gradient, x, weight, *settings)

        of_x = of_weight = None
        full = gradient.float()
        if ctx.needs_input_grad[0]:  # depends on the shape of x alone
            of_x = derive(full, torch.empty_like(x, dtype=full.dtype), weight.float(), [True, False])[0].to(x.dtype)
        if ctx.needs_input_grad[1] and max(weight.shape[2:]) > 3:
            of_weight = derive(full, x.float(), weight.float(), [False, True])[1].to(weight.dtype)
        elif ctx.needs_input_grad[1]:
            of_weight = derive(gradient, x, weight, [False, True])[1]
        return of_x, of_weight, None, None, None


def _depthwise_forward(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (torch.is_grad_enabled() and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return type(layer)._conv_forward(layer, x, weight, bias)
    dtype = torch.get_autocast_dtype("cpu")
    return _Depthwise.apply(x.to(dtype), weight.to(dtype), layer.stride, layer.padding, layer.dilation)


def _has_slow_gradients(module: nn.Module) -> bool:
    """Whether it is a depthwise convolution of the kinds that ``_Depthwise`` is for."""
    return (
        isinstance(module, nn.Conv2d)
        and (module.groups == module.in_channels == module.out_channels)
        and module.in_channels > 1
        and module.bias is None
        and module.padding_mode == "zeros"
        and isinstance(module.padding, tuple)
        and (max(module.stride) > 1 or max(module.kernel_size) > 3)
    )


def make_lean(model: nn.Module) -> None:
    """Takes needless memory traffic out of training a model, in place; doing it again changes nothing.

    On a CPU the process keeps freed memory from here on: it holds about a third more at its peak.

    Args:
        model: Any model. ReLU6, Hardswish and SiLU modules that work in place are changed, and depthwise convolutions
            with a stride or a large kernel; others are left alone.
    """
    for module in model.modules():
        if type(module) is nn.ReLU6 and module.inplace:
            module.__class__ = LeanReLU6
        elif type(module) in (nn.Hardswish, nn.SiLU):
            module.inplace = False  # one pass over memory in place of a copy and a pass
        elif _has_slow_gradients(module):
            module._conv_forward = functools.partial(_depthwise_forward, module)
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next allocation; on other systems nothing happens."""
    allocator = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(allocator, "mallopt"):  # musl has none
        allocator.mallopt(M_MMAP_MAX, 0)
        allocator.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
