"""Black boxes: modules that cannot be traced, of which only the shapes of inputs and outputs are known.

Compiled operators of other libraries (deformable convolutions) and code that branches on values cannot run on fake
tensors. While tracing, the module that holds them is replaced by an opaque operator. Its channels stay at base width,
and everything around it can be augmented.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

Boxes = dict[nn.Module, list[Any]]
"""Modules that cannot be traced, and the results of their calls in one forward pass, as tensors on the meta device."""


@torch.library.custom_op("mmnetaug::black_box", mutates_args=())
def black_box(inputs: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Stands for one result of a module that cannot be traced."""
    return inputs[0].new_zeros(shape)


@black_box.register_fake
def _(inputs: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    return inputs[0].new_empty(shape)


def find_black_boxes(model: nn.Module, run: Callable[[], Any]) -> Boxes:
    """Finds the innermost modules that cannot run on fake tensors.

    Args:
        model: The network, in evaluation mode.
        run: Runs its forward pass.

    Returns:
        These modules and all others of their classes; empty if there are none, or if the network itself is one.
    """
    boxes: Boxes = {}
    while (failing := _failing(model, run, boxes)) is not None:
        alike = [module for module in model.modules() if type(module) is type(failing)]
        if model in alike or failing in boxes:
            return {}
        boxes |= _record(alike, run)
    return boxes


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Makes all tensors fake inside of a ``with`` block. Errors are not logged: the caller reports them."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    silent, log.disabled = log.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield
    finally:
        log.disabled = silent


@contextlib.contextmanager
def boxed(boxes: Boxes) -> Iterator[None]:
    """Replaces the forward passes of black boxes inside of a ``with`` block."""

    def replacement(calls: list[Any]) -> Callable[..., Any]:
        results = itertools.cycle(calls)

        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            return pytree.tree_map_only(Tensor, lambda tensor: black_box(inputs, list(tensor.shape)), next(results))

        return forward

    for module, calls in boxes.items():
        module.forward = replacement(calls)
    try:
        yield
    finally:
        for module in boxes:
            del module.forward


def reason_of(error: Exception) -> str:
    """The first line of an error of a network's code. To be called where the error is caught.

    Raises:
        Exception: The error itself, if code of ``mmnetaug/elastic`` raised it: our own bugs must not hold channels.
    """
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    files = [Path(code.co_filename) for code in codes if code.co_name != "__torch_dispatch__"]  # only observes
    ours = [number for number, file in enumerate(files) if file.is_relative_to(_ELASTIC)]
    if ours:
        behind = files[ours[-1] + 1 :]  # torch's files, or the network's: torch's module.py calls modules
        if all(file.is_relative_to(_TORCH) and file != _MODULE for file in behind):
            raise error
    return next(iter(str(error).splitlines()), type(error).__name__)


_ELASTIC = Path(__file__).parents[1]
_TORCH, _MODULE = Path(torch.__file__).parent, Path(nn.modules.module.__file__)


def _failing(model: nn.Module, run: Callable[[], Any], boxes: Boxes) -> nn.Module | None:
    """The innermost module whose code fails on fake tensors, or None."""
    entered: list[nn.Module] = []
    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(lambda module, inputs: entered.append(module)))
        hooks.append(module.register_forward_hook(lambda module, inputs, outputs: entered.remove(module)))
    try:
        with boxed(boxes), without_values():
            run()
    except Exception as error:
        reason_of(error)
        return entered[-1] if entered else model
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _record(modules: list[nn.Module], run: Callable[[], Any]) -> Boxes:
    """Records the results of calls of modules in one real forward pass; omits modules that are not called."""
    boxes: Boxes = {}

    def keep(module: nn.Module, inputs: Any, outputs: Any) -> None:
        results = pytree.tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), outputs)
        boxes.setdefault(module, []).append(results)

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for module in modules:
            hooks.callback(module.register_forward_hook(keep).remove)
        run()
    return boxes
