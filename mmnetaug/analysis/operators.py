"""Records the operators of a network with their inputs, outputs and multiply-accumulates, for all cost figures.

The network runs on fake tensors, without computation, under torch's ``FlopCounterMode``. Every model that runs on
images can be recorded; of an elastic model, its tiny network is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmnetaug.elastic import evaluating, find_spaces
from mmnetaug.models.tensor_mode import flatten_tensors, tensor_forward

PRODUCTS_WITHOUT_FORMULA = {"mv", "addmv", "dot", "vdot"}


@dataclass(frozen=True)
class Operator:
    """One operator of a recorded network.

    Attributes:
        kind: Its ATen name without overload, such as ``convolution`` or ``hardswish_``.
        layer: Name of the module that runs it, such as ``backbone.stem.conv``.
        reads: Numbers of the values that it reads, without parameters and constants.
        writes: Numbers of the values that it writes. In-place operators write new values.
        shapes: Shapes of the written values.
        macs: Multiply-accumulates.
        padded: Shape of the padded input of a convolution or max pooling whose padding differs from "SAME", the only
            kind in TFLite; None otherwise.
        takes_padding: Whether it is a convolution whose input was padded by a separate operator as in "SAME", so that a
            converter fuses the two.
    """

    kind: str
    layer: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    macs: int
    padded: tuple[int, ...] | None = None
    takes_padding: bool = False


@dataclass(frozen=True)
class Recording:
    """The operators that a network runs on one image.

    Attributes:
        input_shape: ``(1, C, H, W)``; the image is value 0.
        operators: The operators in order.
        outputs: Numbers of the output values.
    """

    input_shape: tuple[int, ...]
    operators: tuple[Operator, ...]
    outputs: tuple[int, ...]


def record(model: nn.Module, input_shape: tuple[int, int, int, int]) -> Recording:
    """Records the operators of a model in eval mode; of an elastic model, those of its tiny network.

    Args:
        model: Detector, classifier or backbone, on any device. Its modes, widths and buffers are restored.
        input_shape: ``(1, C, H, W)``.

    Raises:
        ValueError: The model cannot run at that input size, or uses an operator without a formula (compiled operators
            of mmcv, such as deformable convolution), so that a count would be wrong.
    """
    if len(input_shape) != 4 or input_shape[0] != 1 or min(input_shape) < 1:
        raise ValueError(f"input shape must be (1, C, H, W) with positive sizes, got {tuple(input_shape)}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for space in find_spaces(model):
            stack.enter_context(space.at(space.base()))
        stack.enter_context(torch.no_grad())
        # attention as operators that can be counted, instead of fused kernels
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        image = torch.empty(input_shape, device=device)
        counter = stack.enter_context(FlopCounterMode(display=False))
        recorder = stack.enter_context(_Recorder(counter, image))
        for name, module in model.named_modules():
            if name:
                enter = module.register_forward_pre_hook(lambda *_, name=name: recorder.layers.append(name))
                leave = module.register_forward_hook(lambda *_: recorder.layers.pop() and None)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
        try:
            outputs = tensor_forward(model, image)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            raise ValueError(
                f"the cost of {type(model).__name__} at input {tuple(input_shape)} cannot be counted: the input may be "
                f"too small, or a compiled operator of mmcv asks for data: {type(error).__name__}: {reason}"
            ) from error
        known = [recorder.values[id(tensor)] for tensor in outputs if id(tensor) in recorder.values]
        return Recording(tuple(input_shape), tuple(recorder.operators), tuple(known))


class _Recorder(TorchDispatchMode):
    """Records every operator before it reaches the counter."""

    def __init__(self, counter: FlopCounterMode, image: Tensor) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self.counter = counter
        self.values = {id(image): 0}  # by identity of tensors, which are therefore kept alive
        self.kept = [image]
        self.layers = [""]
        self.paddings: dict[int, tuple[Tensor, list[int]]] = {}  # input and padding, by identity of the result

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = self.counter.get_total_flops()
        given = flatten_tensors((args, kwargs))
        reads = tuple(self.values[id(tensor)] for tensor in given if id(tensor) in self.values)
        out = func(*args, **(kwargs or {}))
        if not reads:
            return out
        results = [tensor for tensor in flatten_tensors(out) if tensor.numel()]
        if not results:
            return out
        for tensor in results:
            self.values[id(tensor)] = len(self.kept)
            self.kept.append(tensor)
        kind = func.__name__.partition(".")[0]
        macs = (self.counter.get_total_flops() - before) // 2
        if not macs and (kind in PRODUCTS_WITHOUT_FORMULA or "attention" in kind):
            raise NotImplementedError(f"torch has no formula for {kind}")
        if kind == "constant_pad_nd":
            self.paddings[id(out)] = (args[0], list(args[1]))
        self.operators.append(
            Operator(
                kind=kind,
                layer=self.layers[-1],
                reads=reads,
                writes=tuple(self.values[id(tensor)] for tensor in results),
                shapes=tuple(tuple(tensor.shape) for tensor in results),
                macs=macs,
                padded=_padded_input(kind, args),
                takes_padding=kind == "convolution" and not args[6] and self._takes_padding(*args[:2], *args[3:6]),
            )
        )
        return out

    def _takes_padding(
        self, x: Tensor, weight: Tensor, strides: list[int], padding: list[int], dilation: list[int]
    ) -> bool:
        if id(x) not in self.paddings or any(padding):
            return False
        source, sides = self.paddings[id(x)]
        around = [(sides + [0] * 4)[2:4], (sides + [0] * 4)[:2]]  # the last dimension comes first
        return len(sides) <= 4 and all(
            side == _same_sides(*sizes)
            for side, *sizes in zip(around, source.shape[2:], weight.shape[2:], strides, dilation, strict=True)
        )


def _padded_input(kind: str, args: tuple) -> tuple[int, ...] | None:
    if kind == "convolution" and not args[6]:  # not transposed ones, which crop their output
        return _padded(args[0], args[1].shape[2:], *args[3:6])
    if kind == "max_pool2d_with_indices" and len(args) > 3 and not any(args[5:6]):  # without ceil_mode
        kernel, strides, padding = ([*sides] * (2 // (len(sides) or 1)) for sides in args[1:4])
        dilation = args[4] if len(args) > 4 else [1]
        return _padded(args[0], kernel, strides or kernel, padding, [*dilation] * (2 // len(dilation)))
    return None


def _padded(
    x: Tensor, kernels: Sequence[int], strides: list[int], padding: list[int], dilation: list[int]
) -> tuple[int, ...] | None:
    """Shape of a padded input, or None if the padding equals "SAME"; see ``Operator.padded``."""
    same, sizes = True, []
    for size, kernel, stride, pad, step in zip(x.shape[2:], kernels, strides, padding, dilation, strict=True):
        reach = (kernel - 1) * step + 1
        last = (size + 2 * pad - reach) // stride * stride + reach  # extent of the padded input that the windows cover
        before, after = _same_sides(size, kernel, stride, step)
        same &= pad == before and last - size - pad <= after
        same &= ceil(size / stride) == (size + 2 * pad - reach) // stride + 1
        sizes.append(size + 2 * pad)
    return None if same or not any(padding) else (*x.shape[:2], *sizes)


def _same_sides(size: int, kernel: int, stride: int, step: int) -> list[int]:
    """Zeros that "SAME" padding puts before and after ``size`` values; ``step`` is the dilation."""
    total = max((ceil(size / stride) - 1) * stride + (kernel - 1) * step + 1 - size, 0)
    return [total // 2, total - total // 2]
