"""Isolates the augmented pass: annotations, random states and DDP are as if it had not run."""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.model import is_model_wrapper
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


def copied_annotations(value: Any) -> Any:
    """Copies annotations, but not images; some of mmdet's losses change annotations in place.

    Several times as fast as ``copy.deepcopy``.
    """
    if isinstance(value, dict):  # the branches of a semi-supervised detector
        return {key: copied_annotations(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(item, BaseDataElement) for item in value):
        return [_copied(item) for item in value]
    return _copied(value) if isinstance(value, BaseDataElement) else value


def _copied(value: Any) -> Any:
    if isinstance(value, BaseDataElement):
        copied = copy.copy(value)
        vars(copied).update({name: _copied(item) for name, item in vars(value).items()})
        return copied
    if isinstance(value, Tensor | set):
        return value.clone() if isinstance(value, Tensor) else set(value)
    return value if isinstance(value, str | int | float | tuple | None) else copy.deepcopy(value)


PER_IMAGE = ("inputs", "data_samples")
"""Arguments of a model's forward that hold one item per image."""


def first_images(model: nn.Module, args: tuple, kwargs: dict[str, Any], share: float) -> tuple[tuple, dict[str, Any]]:
    """Cuts the arguments of a forward pass to the first images of the batch, at least two for batch norm.

    Raises:
        TypeError: If no batch of images is passed as ``inputs``, MMEngine's name for it.
    """
    call = inspect.signature(model.forward).bind(*args, **kwargs)
    images = call.arguments.get("inputs")
    if not isinstance(images, Tensor | list | tuple):
        raise TypeError(
            "share cuts a batch of images, and this model's forward is given no tensor or list of them as inputs: "
            "set optim_wrapper.share=1"
        )
    count = min(len(images), max(2, round(share * len(images))))
    for name in PER_IMAGE:
        if call.arguments.get(name) is not None:
            call.arguments[name] = call.arguments[name][:count]
    return call.args, call.kwargs


def unwrapped(model: nn.Module) -> nn.Module:
    """Removes the wrapper of distributed training."""
    return model.module if is_model_wrapper(model) else model


@contextlib.contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Runs a pass without synchronising gradients; the next pass synchronises as if it were the first."""
    if not hasattr(model, "no_sync"):
        yield
        return
    # DistributedDataParallel broadcasts buffers only in a forward pass that follows a synchronised one.
    broadcasts = getattr(model, "require_forward_param_sync", None)
    with model.no_sync():
        yield
    if broadcasts is not None:
        model.require_forward_param_sync = broadcasts


def finite_on_all_ranks(loss: Tensor) -> bool:
    finite = torch.isfinite(loss.detach()).float()
    all_reduce(finite, op="min")
    return bool(finite)


@contextlib.contextmanager
def own_randomness(seed: str, device: torch.device) -> Iterator[None]:
    """Seeds all random generators inside of a ``with`` block (dropout, samplers of heads) and restores them after it.

    Args:
        seed: Any text.
        device: The model's; its generator is seeded besides those of Python, numpy and torch's CPU.
    """
    number = random.Random(seed).getrandbits(32)
    states = random.getstate(), np.random.get_state()
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng(**(dict(devices=[]) if on_cpu else dict(devices=[device], device_type=device.type))):
        random.seed(number)
        np.random.seed(number)
        torch.default_generator.manual_seed(number)
        if not on_cpu:
            torch.get_device_module(device).manual_seed(number)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
