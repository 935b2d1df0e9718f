"""Reads the channel structure of a plain network off its exported graph.

``torch.export`` gives the ATen graph of a forward pass with parameter names. Interpreting it once over ``Channels``
tells, for every parameter, which runs of channels its dimensions consist of. Operators that are not in the table below
are never guessed: the channels they touch stay at base width, with the reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .channels import Channels, Layout


class TraceError(RuntimeError):
    """The network cannot be traced."""


@dataclass(frozen=True)
class Value:
    """What is known of one tensor of the graph.

    Attributes:
        shape: Its shape at base widths.
        dims: Layouts of those dimensions that are channels; other dimensions are fixed.
        parameter: Name, where the tensor is a parameter or buffer itself.
        pooled: Whether spatial extent was pooled away (what a squeeze-and-excitation gate is computed from).
    """

    shape: tuple[int, ...]
    dims: dict[int, Layout] = field(default_factory=dict)
    parameter: str | None = None
    pooled: bool = False


@dataclass(frozen=True)
class Opening:
    """A convolution or linear layer that makes new channels.

    Attributes:
        module: Name of the module that owns the weight.
        output: Layout of what it makes.
        input: Layout of what it reads; None for the image or fixed features.
        pooled: Whether it reads pooled features.
    """

    module: str
    output: Layout
    input: Layout | None
    pooled: bool


@dataclass
class Trace:
    """The channel structure of a network.

    Attributes:
        channels: The table of runs that all layouts refer to.
        parameters: Per parameter or buffer name, the layouts of its dimensions.
        openings: Convolutions and linear layers in graph order.
        touched: Per module that owns a convolution or linear weight, the layouts it reads and makes.
        integers: Modules whose integer attribute counts channels: (module name, attribute, layout, base value).
        gated: Layouts that are multiplied by a gate computed from their own pooled features.
        outputs: Shapes of the network's outputs.
    """

    channels: Channels = field(default_factory=Channels)
    parameters: dict[str, dict[int, Layout]] = field(default_factory=dict)
    openings: list[Opening] = field(default_factory=list)
    touched: list[tuple[str, Layout]] = field(default_factory=list)
    integers: list[tuple[str, str, Layout, int]] = field(default_factory=list)
    gated: list[Layout] = field(default_factory=list)
    outputs: list[tuple[int, ...]] = field(default_factory=list)


def trace(model: nn.Module, forward: Callable[[nn.Module, Tensor], Iterable[Tensor]], image: Tensor) -> Trace:
    """Traces a plain network.

    Args:
        model: The network; its mode (train/eval) is restored.
        forward: Calls the network and returns its output tensors. Channels that reach an output stay at base width.
        image: An example input, (N, 3, H, W).

    Raises:
        TraceError: If ``torch.export`` cannot trace the network.
    """

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return tuple(forward(self.model, image))

    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        with torch.no_grad():
            program = torch.export.export(Call(), (image,), strict=False)
    except Exception as error:
        raise TraceError(f"torch.export cannot trace {type(model).__name__}: {str(error).splitlines()[0]}") from error
    finally:
        for module, training in modes.items():
            module.training = training

    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {key: name.removeprefix("model.") for key, name in names.items()}
    names |= {key: "" for key in signature.inputs_to_lifted_tensor_constants}
    reader = _Reader()
    inputs = [reader.source(node, names.get(node.name)) for node in program.graph.nodes if node.op == "placeholder"]
    for value in reader.run(program.graph_module, inputs):
        reader.hold(value, "an output of the network")
        reader.found.outputs.append(value.shape)
    return reader.found


class _Reader:
    """Interprets the graph; ``found`` fills up as it goes."""

    def __init__(self) -> None:
        self.found = Trace()
        self.channels = self.found.channels

    def source(self, node: fx.Node, name: str | None) -> Value:
        """A placeholder: the image (``name`` None), a constant (empty name), a parameter or a buffer."""
        shape = tuple(node.meta["val"].shape) if isinstance(node.meta.get("val"), Tensor) else ()
        if not name:
            return Value(shape)
        dims = {dim: self.channels.new(size) for dim, size in enumerate(shape) if size > 1}
        self.found.parameters[name] = dims
        return Value(shape, dims, parameter=name)

    def run(self, graph: fx.GraphModule, inputs: list[Any]) -> list[Any]:
        values: dict[fx.Node, Any] = {}
        remaining = iter(inputs)

        def look_up(argument: Any) -> Any:
            return fx.map_arg(argument, lambda node: values[node])

        for node in graph.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(remaining)
            elif node.op == "get_attr":
                attribute = operator.attrgetter(node.target)(graph)
                values[node] = Value(tuple(attribute.shape)) if isinstance(attribute, Tensor) else attribute
            elif node.op == "output":
                return [value for value in _flat(look_up(node.args)) if isinstance(value, Value)]
            else:
                values[node] = self.call(node, look_up(node.args), look_up(node.kwargs))
        raise AssertionError("a graph ends in its output")

    def call(self, node: fx.Node, args: tuple, kwargs: dict[str, Any]) -> Any:
        if node.target is operator.getitem:
            return args[0][args[1]]
        entered = [arg for arg in args if isinstance(arg, fx.GraphModule)]
        if entered:  # autocast or no_grad regions: (settings..., graph, *inputs)
            return self.run(entered[0], list(args[args.index(entered[0]) + 1 :]))
        results = fx.node.map_aggregate(node.meta.get("val"), _plain)
        where = f"{_name(node)} in {_module(node) or 'the network'}"
        pointwise = torch.Tag.pointwise in getattr(_functional(node.target), "tags", ())
        rule = _Reader.pointwise if pointwise and _name(node) != "prelu" else _RULES.get(_name(node))
        sources = [value for value in _flat((args, list(kwargs.values()))) if isinstance(value, Value)]
        if not any(value.dims for value in sources):
            return results
        try:
            if rule is None:
                raise _NotUnderstood(f"{where} is not understood")
            return rule(self, results, *args, **kwargs)
        except (_NotUnderstood, ValueError) as problem:
            reason = str(problem) if isinstance(problem, _NotUnderstood) else f"{problem} at {where}"
            for value in sources:
                self.hold(value, reason)
            return results

    def hold(self, value: Value, reason: str) -> None:
        for layout in value.dims.values():
            self.channels.hold(layout, reason)

    def join(self, a: Layout | None, b: Layout | None) -> Layout | None:
        """Joins the channels of two operands, either of which may be fixed (None)."""
        if a is not None and b is not None:
            self.channels.join(a, b)
        elif a is not None or b is not None:
            self.channels.hold(a or b, "meets a fixed number of channels")
        return a or b

    # Rules: (result, the operator's own arguments) -> result with layouts. -----------------------------------------

    def convolution(
        self, out: Value, x: Value, w: Value, bias: Value | None = None, *settings: Any, groups: int = 1
    ) -> Value:
        if settings and isinstance(settings[-1], int) and len(settings) >= 4:
            groups = settings[3]
        channel = 1 if len(x.shape) == len(w.shape) else 0
        read, made = x.dims.get(channel), w.dims.get(0)
        if made is None:  # a single output channel
            made = self.channels.new(1)
        if groups == 1:
            self.open(w, self.join(read, w.dims.get(1)) if w.shape[1] > 1 else None, made, x.pooled)
        else:
            per_group = w.shape[1]
            if w.shape[0] != per_group * groups:
                raise _NotUnderstood(f"a grouped convolution from {x.shape[channel]} to {w.shape[0]} channels")
            # Widening adds groups and leaves their size alone, so the first groups are the tiny network's.
            self.join(read, made)
            self.channels.require_multiple(made, per_group)
            if w.parameter is None:
                raise _NotUnderstood("a grouped convolution with a computed weight")
            owner = w.parameter.rpartition(".")[0]
            self.found.integers.append((owner, "groups", made, groups))
            self.found.touched.append((owner, made))
        if bias is not None:
            self.join(made, bias.dims.get(0))
        return Value(out.shape, {channel: made}, pooled=x.pooled)

    def transposed(self, out: Value, x: Value, w: Value, bias: Value | None = None, *settings: Any) -> Value:
        groups = settings[3] if len(settings) > 3 else 1
        if groups != 1:
            raise _NotUnderstood("a grouped transposed convolution")
        made = w.dims.get(1) or self.channels.new(1)
        self.open(w, self.join(x.dims.get(1), w.dims.get(0)), made, x.pooled)
        if bias is not None:
            self.join(made, bias.dims.get(0))
        return Value(out.shape, {1: made})

    def linear(self, out: Value, x: Value, w: Value, bias: Value | None = None) -> Value:
        last = len(x.shape) - 1
        made = w.dims.get(0) or self.channels.new(1)
        self.open(w, self.join(x.dims.get(last), w.dims.get(1)), made, x.pooled)
        if bias is not None:
            self.join(made, bias.dims.get(0))
        return Value(out.shape, {**x.dims, last: made}, pooled=x.pooled)

    def open(self, weight: Value, read: Layout | None, made: Layout, pooled: bool) -> None:
        owner = (weight.parameter or "").rpartition(".")[0]
        if weight.parameter is None:
            self.channels.hold(made, "made by a computed weight")
        self.found.openings.append(Opening(owner, made, read, pooled))
        self.found.touched.append((owner, made))
        if read is not None:
            self.found.touched.append((owner, read))

    def norm(self, out: Value, x: Value, *args: Any, **kwargs: Any) -> Value:
        """Batch and instance norm: every further tensor is a vector over the channels."""
        for vector in _flat((args, list(kwargs.values()))):
            if isinstance(vector, Value) and vector.shape:
                self.join(x.dims.get(1), vector.dims.get(0))
        return Value(out.shape, x.dims, pooled=x.pooled)

    def layer_norm(self, out: Value, x: Value, size: list[int], *args: Any, **kwargs: Any) -> Value:
        last = len(x.shape) - 1
        vectors = [v for v in _flat((args, list(kwargs.values()))) if isinstance(v, Value)]
        if len(size) != 1 or not vectors or vectors[0].parameter is None:
            raise _NotUnderstood("a layer norm over more than the channels, or without weights")
        for vector in vectors:
            self.join(x.dims.get(last), vector.dims.get(0))
        if last in x.dims:
            owner = vectors[0].parameter.rpartition(".")[0]
            self.found.integers.append((owner, "normalized_shape", x.dims[last], size[0]))
        return Value(out.shape, x.dims, pooled=x.pooled)

    def group_norm(self, out: Value, x: Value, groups: int, *args: Any, **kwargs: Any) -> Value:
        vectors = [v for v in _flat((args, list(kwargs.values()))) if isinstance(v, Value)]
        for vector in vectors:
            self.join(x.dims.get(1), vector.dims.get(0))
        if groups > 1 and 1 in x.dims:  # one group stays one group; more keep their size and grow in number
            if not vectors or vectors[0].parameter is None:
                raise _NotUnderstood("a group norm without weights")
            self.channels.require_multiple(x.dims[1], x.shape[1] // groups)
            owner = vectors[0].parameter.rpartition(".")[0]
            self.found.integers.append((owner, "num_groups", x.dims[1], groups))
        return Value(out.shape, x.dims, pooled=x.pooled)

    def prelu(self, out: Value, x: Value, weight: Value) -> Value:
        if math.prod(weight.shape) > 1:
            self.join(x.dims.get(1), weight.dims.get(0))
        return Value(out.shape, x.dims, pooled=x.pooled)

    def pointwise(self, out: Value, *args: Any, **kwargs: Any) -> Value:
        """Any elementwise operator, operands aligned from the last dimension."""
        operands = [v for v in _flat((args, list(kwargs.values()))) if isinstance(v, Value)]
        dims: dict[int, Layout] = {}
        for dim, size in enumerate(out.shape):
            layouts = []
            for operand in operands:
                own = dim - len(out.shape) + len(operand.shape)
                if own >= 0 and operand.shape[own] == size and size > 1:
                    layouts.append(operand.dims.get(own))
            if any(layout is not None for layout in layouts):
                for layout in layouts[1:]:
                    self.join(layouts[0], layout)
                dims[dim] = next(layout for layout in layouts if layout is not None)
        gates = [operand for operand in operands if operand.pooled and operand.dims]
        if gates and any(not operand.pooled and operand.parameter is None and operand.dims for operand in operands):
            self.found.gated.extend(dims.values())
        return Value(out.shape, dims, pooled=bool(operands) and all(v.pooled or v.parameter for v in operands))

    def same(self, out: Value, x: Value, *args: Any, **kwargs: Any) -> Any:
        """Operators that keep every dimension in its place and work along none of the channels' (pooling, resizing)."""
        if isinstance(out, list | tuple):
            return [self.same(item, x) for item in out]
        for dim in x.dims:
            if out.shape[dim] != x.shape[dim]:
                raise _NotUnderstood(f"{x.shape[dim]} channels become {out.shape[dim]}")
        pooled = x.pooled or (len(out.shape) == 4 and out.shape[2:] == (1, 1) and x.shape[2:] != (1, 1))
        return Value(out.shape, x.dims, pooled=pooled)

    def pad(self, out: Value, x: Value, padding: list[int], *args: Any) -> Value:
        for dim in x.dims:
            if out.shape[dim] != x.shape[dim]:
                raise _NotUnderstood("channels are padded")
        return Value(out.shape, x.dims, pooled=x.pooled)

    def reduce(
        self, out: Value, x: Value, dim: list[int] | int | None = None, keepdim: bool = False, **kwargs: Any
    ) -> Any:
        if isinstance(out, list | tuple):
            return [self.reduce(item, x, dim, keepdim) for item in out]
        gone = range(len(x.shape)) if dim in (None, []) else [d % len(x.shape) for d in _flat(dim)]
        dims = {}
        for d, layout in x.dims.items():
            if d not in gone:
                dims[d if keepdim else d - sum(g < d for g in gone)] = layout
        pooled = x.pooled or (len(x.shape) == 4 and {2, 3} <= set(gone))
        return Value(out.shape, dims, pooled=pooled)

    def cat(self, out: Value, tensors: list[Value], dim: int = 0) -> Value:
        dim %= len(out.shape)
        tensors = [tensor for tensor in tensors if math.prod(tensor.shape)]
        dims: dict[int, Layout] = {}
        for d in range(len(out.shape)):
            if not any(d in tensor.dims for tensor in tensors):
                continue
            if d != dim:
                for tensor in tensors[1:]:
                    self.join(tensors[0].dims.get(d), tensor.dims.get(d))
                dims[d] = next(tensor.dims[d] for tensor in tensors if d in tensor.dims)
                continue
            dims[d] = ()
            for tensor in tensors:
                layout = tensor.dims.get(d)
                if layout is None:
                    layout = self.channels.new(tensor.shape[d])
                    self.channels.hold(layout, "a fixed number of channels")
                dims[d] += layout
        return Value(out.shape, dims, pooled=all(tensor.pooled for tensor in tensors))

    def stack(self, out: Value, tensors: list[Value], dim: int = 0) -> Value:
        dim %= len(out.shape)
        moved = [Value(t.shape, {d + (d >= dim): layout for d, layout in t.dims.items()}) for t in tensors]
        dims = dict(moved[0].dims)
        for tensor in moved[1:]:
            for d in dims.keys() | tensor.dims.keys():
                dims[d] = self.join(dims.get(d), tensor.dims.get(d))
        return Value(out.shape, dims)

    def permute(self, out: Value, x: Value, order: list[int]) -> Value:
        order = [d % len(x.shape) for d in order]
        return Value(out.shape, {order.index(d): layout for d, layout in x.dims.items()}, pooled=x.pooled)

    def transpose(self, out: Value, x: Value, a: int, b: int) -> Value:
        order = list(range(len(x.shape)))
        order[a], order[b] = order[b], order[a]
        return self.permute(out, x, order)

    def reshape(self, out: Value, x: Value, *args: Any) -> Value:
        """A channel dimension survives where as many elements lie before and behind it as did."""
        dims = {}
        for d, layout in x.dims.items():
            before = math.prod(x.shape[:d])
            places = [
                e for e in range(len(out.shape)) if out.shape[e] == x.shape[d] and math.prod(out.shape[:e]) == before
            ]
            if not places:
                raise _NotUnderstood(f"channels are folded: {x.shape} becomes {out.shape}")
            dims[places[0]] = layout
        return Value(out.shape, dims, pooled=x.pooled)

    def expand(self, out: Value, x: Value, *args: Any, **kwargs: Any) -> Value:
        shift = len(out.shape) - len(x.shape)
        return Value(out.shape, {d + shift: layout for d, layout in x.dims.items()}, pooled=x.pooled)

    def sliced(
        self, out: Value, x: Value, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
    ) -> Value:
        dim %= len(x.shape)
        dims = dict(x.dims)
        if dim in dims and out.shape[dim] != x.shape[dim]:
            if step != 1:
                raise _NotUnderstood("channels are sliced with a step")
            first, last, _ = slice(start, stop).indices(x.shape[dim])
            dims[dim] = self.channels.part(dims[dim], first, last)
        return Value(out.shape, dims, pooled=x.pooled)

    def select(self, out: Value, x: Value, dim: int, index: int) -> Value:
        dim %= len(x.shape)
        if dim in x.dims:
            raise _NotUnderstood("a single channel is selected")
        return Value(out.shape, {d - (d > dim): layout for d, layout in x.dims.items()}, pooled=x.pooled)

    def unbind(self, out: list[Value], x: Value, dim: int = 0) -> list[Value]:
        return [self.select(item, x, dim, i) for i, item in enumerate(out)]

    def split(self, out: list[Value], x: Value, sizes: Any, dim: int = 0) -> list[Value]:
        """``chunk`` and ``split``: parts of equal size stay equally wide."""
        dim %= len(x.shape)
        parts, offset = [], 0
        for item in out:
            dims = dict(x.dims)
            if dim in dims:
                dims[dim] = self.channels.part(x.dims[dim], offset, offset + item.shape[dim])
                offset += item.shape[dim]
            parts.append(Value(item.shape, dims, pooled=x.pooled))
        if dim in x.dims:
            for part in parts[1:]:
                if part.shape[dim] != parts[0].shape[dim]:
                    raise _NotUnderstood("channels are split into unequal parts")
                self.channels.tie(parts[0].dims[dim], part.dims[dim])
        return parts


class _NotUnderstood(Exception):
    """The rule for an operator does not cover this use of it; the text is the reason shown to the user."""


_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], _Reader.convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d"], _Reader.transposed),
    "linear": _Reader.linear,
    **dict.fromkeys(["batch_norm", "instance_norm"], _Reader.norm),
    "layer_norm": _Reader.layer_norm,
    "group_norm": _Reader.group_norm,
    "prelu": _Reader.prelu,
    # Elementwise, but without the tag.
    **dict.fromkeys(["hardswish", "log_sigmoid", "rsub", "where", "masked_fill"], _Reader.pointwise),
    **dict.fromkeys(["max_pool2d", "max_pool2d_with_indices", "avg_pool2d"], _Reader.same),
    **dict.fromkeys(["adaptive_avg_pool2d", "adaptive_max_pool2d"], _Reader.same),
    **dict.fromkeys(["upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"], _Reader.same),
    **dict.fromkeys(["contiguous", "clone", "alias", "detach", "dropout", "_to_copy", "to", "type_as"], _Reader.same),
    **dict.fromkeys(["zeros_like", "ones_like", "softmax", "log_softmax"], _Reader.same),
    **dict.fromkeys(["pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"], _Reader.pad),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "var", "std", "max", "min", "linalg_vector_norm"], _Reader.reduce),
    **dict.fromkeys(["cat", "concat"], _Reader.cat),
    "stack": _Reader.stack,
    "permute": _Reader.permute,
    "transpose": _Reader.transpose,
    **dict.fromkeys(
        ["view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"], _Reader.reshape
    ),
    **dict.fromkeys(["expand", "expand_as"], _Reader.expand),
    "slice": _Reader.sliced,
    "select": _Reader.select,
    "unbind": _Reader.unbind,
    **dict.fromkeys(["chunk", "split", "split_with_sizes"], _Reader.split),
}


def _plain(value: Any) -> Any:
    return Value(tuple(value.shape)) if isinstance(value, Tensor) else value


def _flat(item: Any) -> list[Any]:
    if isinstance(item, list | tuple):
        return [leaf for part in item for leaf in _flat(part)]
    return [item]


def _name(node: fx.Node) -> str:
    name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
    return name if name.startswith("__") else name.rstrip("_")


def _functional(target: Any) -> Any:
    """The functional twin of an in-place operator: only that one carries the pointwise tag."""
    packet = getattr(target, "overloadpacket", None)
    name = str(packet).rpartition(".")[2]
    if packet is None or not name.endswith("_") or name.startswith("__"):
        return target
    twin = getattr(torch.ops.aten, name.rstrip("_"), None)
    return getattr(twin, target._overloadname, target) if twin is not None else target


def _module(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0].removeprefix("model.").removeprefix("model") if stack else ""
