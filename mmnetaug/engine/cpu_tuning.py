"""A hook that speeds up training on CPUs."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmnetaug.registry import HOOKS

from .augmented_pass import unwrapped

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


@HOOKS.register_module()
class CPUTuningHook(Hook):
    """Speeds up training and evaluation on a CPU. A model on an accelerator is left unchanged.

    Results change by rounding only, except that dropout draws masks of feature maps in memory order and so other ones.

    * Backbones get their images in the channels-last memory format, which convolutions keep. The network must not
      depend on the format: ``x.view(len(x), -1)`` fails, ``x.flatten(1)`` works.
    * The process keeps freed memory for the next step (Linux with glibc, for the life of the process). By default glibc
      returns large blocks to the system, which clears every page before it hands them out again. Peak memory rises by
      about a third.
    * Under bfloat16 autocast, depthwise convolutions with a stride or a kernel larger than 3x3 are computed in float32.
      Their bfloat16 gradients have no fast kernel on CPUs and take 3 to 12 times as long.
    """

    def before_run(self, runner: Runner) -> None:
        """Tunes the model and the process.

        Raises:
            ValueError: The model has no backbone.
        """
        model = unwrapped(runner.model)
        if {parameter.device.type for parameter in model.parameters()} != {"cpu"}:
            return
        backbones = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "backbone"]
        if not backbones:
            raise ValueError(
                f"CPUTuningHook has a backbone read its images in channels-last, and {type(model).__name__} has none: "
                "leave the hook out"
            )
        for backbone in backbones:
            backbone.register_forward_pre_hook(_to_channels_last, with_kwargs=True)
        for module in model.modules():
            if _is_slow_in_bfloat16(module):
                module.forward = functools.partial(_conv_in_float32, module)
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next allocation. Does nothing on other systems."""
    allocator = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(allocator, "mallopt"):  # musl has none
        allocator.mallopt(M_MMAP_MAX, 0)
        allocator.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _to_channels_last(backbone: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    def convert(value: Any) -> Any:
        images = isinstance(value, Tensor) and value.dim() == 4
        return value.contiguous(memory_format=torch.channels_last) if images else value

    return tuple(map(convert, args)), {name: convert(value) for name, value in kwargs.items()}


def _is_slow_in_bfloat16(module: nn.Module) -> bool:
    depthwise = isinstance(module, nn.Conv2d) and 1 < module.in_channels == module.groups
    return depthwise and (max(module.stride) > 1 or max(module.kernel_size) > 3)


def _conv_in_float32(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer's own forward pass in float32, its output cast to autocast's type."""
    forward = type(layer).forward
    # autocast leaves float64 alone
    if not (x.device.type == "cpu" and torch.is_autocast_enabled("cpu")) or x.dtype == torch.float64:
        return forward(layer, x)
    with torch.autocast("cpu", enabled=False):
        out = forward(layer, x.float())
    return out.to(torch.get_autocast_dtype("cpu"))
