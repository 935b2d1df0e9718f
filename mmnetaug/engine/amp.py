"""The NetAug step in mixed precision, on any device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from mmnetaug.registry import OPTIM_WRAPPERS

from .optim_wrapper import NetAugOptimWrapper


class AmpAnywhere(AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper``, which needs an accelerator, or bfloat16 without loss scaling on a CPU."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, *args: Any, dtype: str | torch.dtype | None = None, **kwargs: Any
    ) -> None:
        self._on_cpu = optimizer.param_groups[0]["params"][0].device.type == "cpu"
        if not self._on_cpu:
            super().__init__(*args, optimizer=optimizer, dtype=dtype, **kwargs)
            return
        if dtype not in (None, "bfloat16", torch.bfloat16):
            raise ValueError(f"mixed precision on a CPU is bfloat16, not {dtype}")
        kwargs.pop("loss_scale", None)
        OptimWrapper.__init__(self, optimizer, *args, **kwargs)
        self.loss_scaler, self._scale_update_param = torch.amp.GradScaler("cpu", enabled=False), None
        self.cast_dtype = torch.bfloat16

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context of a forward pass in mixed precision on the model's own device."""
        if self._on_cpu:
            with OptimWrapper.optim_context(self, model), torch.autocast("cpu", self.cast_dtype):
                yield
        else:
            with super().optim_context(model):
                yield


@OPTIM_WRAPPERS.register_module()
class NetAugAmpOptimWrapper(NetAugOptimWrapper, AmpAnywhere):
    """``NetAugOptimWrapper`` in mixed precision: MMEngine's ``AmpOptimWrapper``, or bfloat16 on a CPU."""
