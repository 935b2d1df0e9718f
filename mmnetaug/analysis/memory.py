"""Estimates peak activation memory and flash of a network in int8 on a microcontroller, and whether it fits.

An interpreter such as TensorFlow Lite Micro keeps every activation in one arena, from the operator that writes it to
the last one that reads it. The largest sum of activations that are alive at the same time is therefore a lower bound.
Convolutions are fused with the following norm and ReLU, as converters do, and padding other than "SAME" needs a padded
copy of the input.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import nn

from mmnetaug.elastic import base_state_dict, find_spaces

from .operators import Operator, Recording, record

CONVOLUTIONS = ("convolution", "addmm", "mm", "linear")
FUSING = (*CONVOLUTIONS, "add", "add_", "mul", "mul_", "sub", "sub_")
"""Operators that can be fused with a following activation."""

FUSED = ("relu", "relu_", "hardtanh", "hardtanh_", "relu6", "relu6_")
"""Activations that TFLite fuses into the preceding operator."""

# For every channel TFLite stores a 32-bit bias, and a scale (32 bits) and zero point (64 bits) each of weight and bias.
# In SRAM, TFLM keeps a multiplier and a shift of 32 bits each. The values per operator are measured (docs/deploy.md).
FLASH_PER_CHANNEL = 4 + 2 * (4 + 8)
FLASH_PER_OPERATOR = 250
SRAM_PER_CHANNEL = 8
SRAM_PER_OPERATOR = 200

VIEWS = ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "detach", "alias", "clone", "expand", "t")
"""Operators that need no memory."""


@dataclass(frozen=True)
class Peak:
    """The moment with the most activation memory.

    Attributes:
        bytes: Total size of the activations, at one byte per element.
        layer: Name of the module that runs.
        kind: Kind of its operator; ``pad`` for the padding of a convolution.
        alive: The activations: the layer that wrote each (``image`` for the input) and its shape.
    """

    bytes: int
    layer: str
    kind: str
    alive: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Layer:
    """A row of the table of layers: a convolution, linear layer or matrix product, with the norm that follows it.

    Attributes:
        name: Name of the module.
        kind: ATen name of the operator.
        runs: Number of runs (heads run once per level).
        shape: Shape of its last output.
        macs: Multiply-accumulates of one image over all runs.
        params: Parameters of the module and its norm.
        channels: Output channels with their own scales and biases.
        flash: Bytes of its int8 weights, 32-bit biases and scales.
    """

    name: str
    kind: str
    runs: int
    shape: tuple[int, ...]
    macs: int
    params: int
    channels: int
    flash: int


@dataclass(frozen=True)
class Footprint:
    """Memory of a network in int8 on a device.

    Attributes:
        peak: Peak activation memory, the reused part of the arena.
        bookkeeping: Estimated bytes of the arena that the interpreter needs for its operators.
        flash: Estimated bytes of the model file, without the interpreter's code.
        layers: The table of layers.
    """

    peak: Peak
    bookkeeping: int
    flash: int
    layers: tuple[Layer, ...]

    @property
    def sram(self) -> int:
        """Bytes of the arena."""
        return self.peak.bytes + self.bookkeeping

    def misfits(self, sram: int | None = None, flash: int | None = None) -> list[str]:
        """Reasons why the network does not fit into this many bytes of SRAM and flash; empty if it fits."""
        reasons = []
        if sram is not None and self.sram > sram:
            reasons.append(
                f"it needs {kilobytes(self.sram)} of SRAM, {kilobytes(self.sram - sram)} more than the "
                f"{kilobytes(sram)} there are: {kilobytes(self.peak.bytes)} of activations at {self.peak.layer} "
                f"({self.peak.kind}) and {kilobytes(self.bookkeeping)} of bookkeeping; a smaller input or fewer "
                "channels there help"
            )
        if flash is not None and self.flash > flash:
            largest = max(self.layers, key=lambda layer: layer.flash)
            reasons.append(
                f"it needs {kilobytes(self.flash)} of flash, {kilobytes(self.flash - flash)} more than the "
                f"{kilobytes(flash)} there are; the most are in {largest.name} ({kilobytes(largest.flash)})"
            )
        return reasons

    def figures(self) -> dict[str, Any]:
        """The footprint as plain values, for JSON."""
        return {
            "peak_activations": self.peak.bytes,
            "peak_layer": self.peak.layer,
            "peak_operator": self.peak.kind,
            "peak_alive": [{"layer": layer, "shape": list(shape)} for layer, shape in self.peak.alive],
            "bookkeeping": self.bookkeeping,
            "flash": self.flash,
            "layers": [asdict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        alive = " + ".join(f"{layer} {'x'.join(map(str, shape[1:]))}" for layer, shape in self.peak.alive)
        return (
            f"int8 on a microcontroller: {kilobytes(self.sram)} of SRAM, {kilobytes(self.flash)} of flash\n"
            f"  {kilobytes(self.peak.bytes)} of activations, at {self.peak.layer} ({self.peak.kind}): {alive}\n"
            f"  {kilobytes(self.bookkeeping)} of an interpreter's bookkeeping (estimate)"
        )

    def table(self) -> str:
        """The layers as text, one line each."""
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'layer':<{width}}  {'output':>14}  {'MACs':>12}  {'params':>9}  {'flash':>9}"]
        for layer in self.layers:
            shape = "x".join(map(str, layer.shape[1:])) + (f" (x{layer.runs})" if layer.runs > 1 else "")
            lines.append(
                f"{layer.name:<{width}}  {shape:>14}  {layer.macs:>12,}  {layer.params:>9,}  {layer.flash:>9,}"
            )
        return "\n".join(lines)


def measure_footprint(model: nn.Module, input_shape: tuple[int, int, int, int]) -> Footprint:
    """Measures the memory of a model on a device; of an elastic model, that of its tiny network.

    Args:
        model: Plain or elastic.
        input_shape: ``(1, C, H, W)``.

    Raises:
        ValueError: The model cannot be recorded, see :func:`mmnetaug.analysis.operators.record`.
    """
    recording = record(model, input_shape)
    layers = layer_table(model, recording)
    steps = len(deployed(recording)[0])
    channels = sum(layer.channels * layer.runs for layer in layers)  # every run has an operator with scales
    return Footprint(
        peak=peak_memory(recording),
        bookkeeping=SRAM_PER_CHANNEL * channels + SRAM_PER_OPERATOR * steps,
        flash=sum(layer.flash for layer in layers) + FLASH_PER_OPERATOR * steps,
        layers=tuple(layers),
    )


def peak_memory(recording: Recording) -> Peak:
    """The largest sum of int8 activations alive at the same time when the network runs in the recorded order."""
    steps, outputs = deployed(recording)
    shapes, writer = {0: recording.input_shape}, {0: "image"}
    last_read = dict.fromkeys(outputs, len(steps))
    for index, step in enumerate(steps):
        for value in step.reads:
            last_read[value] = max(last_read.get(value, 0), index)
        for value, shape in zip(step.writes, step.shapes, strict=True):
            shapes[value], writer[value] = shape, step.layer
    alive = {0}
    peak = Peak(prod(recording.input_shape), "image", "input", (("image", recording.input_shape),))
    for index, step in enumerate(steps):
        alive |= set(step.writes)
        size = sum(prod(shapes[value]) for value in alive)
        if size > peak.bytes:
            peak = Peak(size, step.layer, step.kind, tuple((writer[value], shapes[value]) for value in sorted(alive)))
        alive = {value for value in alive if last_read.get(value, -1) > index}
    return peak


def layer_table(model: nn.Module, recording: Recording) -> list[Layer]:
    """A row for each layer with multiply-accumulates, in order of their first run.

    Parameters of norms count for the convolution into which they are folded. All other parameters (learned constants,
    norms that cannot be folded) are in one row at the end.
    """
    tiny = base_state_dict(model) if find_spaces(model) else dict(model.named_parameters())
    sizes = {name: tuple(tiny[name].shape) for name, _ in model.named_parameters()}
    own: dict[str, list[str]] = {}
    for name in sizes:
        own.setdefault(name.rpartition(".")[0], []).append(name)
    producer = {value: operator for operator in recording.operators for value in operator.writes}
    rows: dict[str, list[Operator]] = {}
    folded: dict[str, set[str]] = {}
    for operator in recording.operators:
        if operator.macs:
            rows.setdefault(operator.layer, []).append(operator)
        elif "batch_norm" in operator.kind and (before := producer.get(operator.reads[0])) and before.macs:
            folded.setdefault(before.layer, set()).add(operator.layer)
    layers, counted = [], set()
    for name, operators in rows.items():
        weights = own.get(name, [])
        norms = [tensor for norm in sorted(folded.get(name, ())) for tensor in own.get(norm, [])]
        channels = operators[-1].shapes[0][1] if weights else 0
        matrices = sum(prod(sizes[tensor]) for tensor in weights if len(sizes[tensor]) > 1)
        copies = max(len(folded.get(name, ())), 1)  # a shared convolution with a norm per level becomes several
        layers.append(
            Layer(
                name=name,
                kind=operators[-1].kind,
                runs=len(operators),
                shape=operators[-1].shapes[0],
                macs=sum(operator.macs for operator in operators),
                params=sum(prod(sizes[tensor]) for tensor in weights + norms),
                channels=channels,
                flash=copies * (matrices + FLASH_PER_CHANNEL * channels),
            )
        )
        counted.update(weights + norms)
    rest = sum(prod(size) for name, size in sizes.items() if name not in counted)
    if rest:
        layers.append(Layer("(everything else)", "", 0, (), 0, rest, 0, rest))
    return layers


def kilobytes(size: int) -> str:
    """Formats a size in units of 1024 bytes."""
    return f"{size / 1024:.1f} KB"


def deployed(recording: Recording) -> tuple[list[Operator], list[int]]:
    """The operators after conversion to TFLite, and the output values.

    Folded operators are removed. Padding that "SAME" cannot express becomes an operator, and so do LeakyReLU's product
    (TFLite's quantiser does not support LeakyReLU, so :mod:`mmnetaug.deploy` exports max(x, slope * x)) and SiLU's
    sigmoid (TFLite has no SiLU).
    """
    alias = _aliases(recording)
    outputs = [_root(alias, value) for value in recording.outputs]
    used = {value for operator in recording.operators for value in operator.reads} | set(recording.outputs)
    new = 1 + max((value for operator in recording.operators for value in operator.writes), default=0)
    steps = []
    for operator in recording.operators:
        if any(value in alias for value in operator.writes):
            continue
        reads = tuple(_root(alias, value) for value in operator.reads)
        kept = [i for i, value in enumerate(operator.writes) if value in used] or [0]
        writes = tuple(operator.writes[i] for i in kept)
        shapes = tuple(operator.shapes[i] for i in kept)
        if operator.padded:
            steps.append(Operator("pad", operator.layer, reads[:1], (new,), (operator.padded,), 0))
            reads, new = (new, *reads[1:]), new + 1
        elif operator.kind.removesuffix("_") in ("leaky_relu", "silu"):
            first = "logistic" if "silu" in operator.kind else "mul"
            steps.append(Operator(first, operator.layer, reads[:1], (new,), shapes, 0))
            reads, new = (*reads, new), new + 1
        steps.append(Operator(operator.kind, operator.layer, reads, writes, shapes, operator.macs))
    return steps, outputs


def _aliases(recording: Recording) -> dict[int, int]:
    """Values that share the memory of others, because the operator that writes them is folded."""
    producer = {value: operator for operator in recording.operators for value in operator.writes}
    readers: dict[int, int] = dict.fromkeys(recording.outputs, 1)
    for operator in recording.operators:
        for value in operator.reads:
            readers[value] = readers.get(value, 0) + 1
    padded = {operator.reads[0] for operator in recording.operators if operator.takes_padding}
    shapes = {0: recording.input_shape}
    for operator in recording.operators:
        shapes.update(zip(operator.writes, operator.shapes, strict=True))
    alias: dict[int, int] = {}
    for operator in recording.operators:
        source = operator.reads[0]
        root = _root(alias, source)
        before = producer.get(root)
        only = readers[source] == 1 and before is not None
        folds = only and (
            ("batch_norm" in operator.kind and before.kind in CONVOLUTIONS)
            or (operator.kind in FUSED and before.kind in FUSING)
        )
        folds |= (
            operator.kind == "constant_pad_nd" and operator.writes[0] in padded and readers[operator.writes[0]] == 1
        )
        whole = operator.kind == "slice" and shapes[operator.writes[0]] == shapes[source]
        if folds or whole or operator.kind in VIEWS:
            alias[operator.writes[0]] = root
    return alias


def _root(alias: dict[int, int], value: int) -> int:
    while value in alias:
        value = alias[value]
    return value
