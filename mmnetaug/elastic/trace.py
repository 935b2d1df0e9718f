"""Reads the channel structure of a plain network off its exported graph.

``torch.export`` gives the ATen graph of a forward pass with parameter names. Interpreting it once over ``Channels``
tells, for every parameter, which runs of channels its dimensions consist of. Operators that are not in the table below
are never guessed: the channels they touch stay at base width, with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .black_box import Boxes, boxed, find_black_boxes
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
        reads: Per parameter that mixes channels into others, the dimension along those it reads.
        touched: Per module that owns a convolution or linear weight, the layouts it reads and makes.
        integers: Modules whose attribute counts channels: (module name, attribute, layout, base value).
        steps: What every operator of the graph gives, in order: its name and its results. Tells the shapes that are
            expected at any widths.
        divided: Whether channels are divided anywhere (split, sliced, folded), or a shape is written out.
        boxes: Modules that cannot be traced.
        gated: Layouts that are multiplied by a gate computed from their own pooled features.
    """

    channels: Channels = field(default_factory=Channels)
    parameters: dict[str, dict[int, Layout]] = field(default_factory=dict)
    openings: list[Opening] = field(default_factory=list)
    reads: dict[str, int] = field(default_factory=dict)
    touched: list[tuple[str, Layout]] = field(default_factory=list)
    integers: list[tuple[str, str, Layout, int | tuple[int, ...]]] = field(default_factory=list)
    steps: list[tuple[str, list[Value]]] = field(default_factory=list)
    divided: bool = False
    boxes: Boxes = field(default_factory=dict)
    gated: list[Layout] = field(default_factory=list)


def trace(model: nn.Module, forward: Callable[[nn.Module, Tensor], Iterable[Tensor]], image: Tensor) -> Trace:
    """Traces a plain network.

    Args:
        model: The network; its mode (train/eval) is restored.
        forward: Calls the network and returns its output tensors. Channels that reach an output stay at base width.
        image: An example input, (N, C, H, W).

    Raises:
        TraceError: If ``torch.export`` cannot trace the network.
    """

    boxes: Boxes = {}
    try:
        program = export(model, forward, image, boxes)
    except TraceError:
        with evaluating(model):
            boxes = find_black_boxes(model, lambda: list(forward(model, image.clone())))
        if not boxes:
            raise
        program = export(model, forward, image, boxes)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {key: name.removeprefix("model.") for key, name in names.items()}
    names |= {key: "" for key in signature.inputs_to_lifted_tensor_constants}
    reader = _Reader(model)
    reader.found.boxes = boxes
    inputs = [reader.source(node, names.get(node.name)) for node in program.graph.nodes if node.op == "placeholder"]
    for value in reader.run(program.graph_module, inputs):
        reader.hold(value, "an output of the network")
    return reader.found


def export(
    model: nn.Module, forward: Callable[[nn.Module, Tensor], Iterable[Tensor]], image: Tensor, boxes: Boxes
) -> torch.export.ExportedProgram:
    """The graph of a network's forward pass in evaluation, but for the inside of black boxes.

    Raises:
        TraceError: If ``torch.export`` cannot trace the network.
    """

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return tuple(forward(self.model, image))

    with evaluating(model), boxed(boxes), torch.no_grad():
        try:
            return torch.export.export(Call(), (image,), strict=False)
        except Exception as error:
            raise TraceError(f"torch.export cannot trace {type(model).__name__}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextlib.contextmanager
def evaluating(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Switches to evaluation (or training) for the time of a ``with`` block; what modules do about it is done too."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    for module in modes:
        module.training = training
    try:
        yield
    finally:
        model.train(modes[model])
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Gives modules back the attributes that they had before a ``with`` block.

    In a forward pass on shapes alone, modules put tensors without values into their caches, and note that they have
    initialised themselves.
    """
    kept = []
    for module in model.modules():
        attributes = dict(vars(module))
        held = [(value, copy.copy(value)) for value in attributes.values() if isinstance(value, dict | list | set)]
        kept.append((vars(module), attributes, held))
    try:
        yield
    finally:
        for now, attributes, held in kept:
            now.clear()
            now.update(attributes)
            for container, content in held:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)


def shapes(graph: fx.GraphModule) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """Name and result shapes of every operator of an exported graph, in the order of ``Trace.steps``."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        entered = [
            inner
            for arg in node.args
            if isinstance(arg, fx.Node) and arg.op == "get_attr"
            if isinstance(inner := operator.attrgetter(arg.target)(graph), fx.GraphModule)
        ]
        if entered:
            yield from shapes(entered[0])
        else:
            results = fx.node.map_aggregate(node.meta.get("val"), _plain)
            yield _name(node), [value.shape for value in _flat(results) if isinstance(value, Value)]


class _Reader:
    """Interprets the graph; ``found`` fills up as it goes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found = Trace()
        self.channels = self.found.channels
        self.module = ""  # the module whose code is being read
        self.operator = ""  # the operator that is being read

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
        results = self.interpret(node, args, kwargs)
        self.found.steps.append((_name(node), [value for value in _flat(results) if isinstance(value, Value)]))
        return results

    def interpret(self, node: fx.Node, args: tuple, kwargs: dict[str, Any]) -> Any:
        results = fx.node.map_aggregate(node.meta.get("val"), _plain)
        self.module, self.operator = _module(node), _name(node)
        if self.operator == "_assert_tensor_metadata":  # what a cast expects; computes nothing
            return results
        where = f"{self.operator} in {self.module or 'the network'}"
        pointwise = torch.Tag.pointwise in getattr(_functional(node.target), "tags", ())
        rule = _Reader.pointwise if pointwise and self.operator != "prelu" else _RULES.get(self.operator)
        sources = [value for value in _flat((args, list(kwargs.values()))) if isinstance(value, Value)]
        if not any(value.dims for value in sources):
            return results
        try:
            if rule is None:
                raise _NotUnderstood(f"{where} is not understood")
            try:
                inspect.signature(rule).bind(self, results, *args, **kwargs)
            except TypeError as unexpected:
                raise _NotUnderstood(f"{where}: {unexpected}") from None
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
        read, made = x.dims.get(channel), self.made(w, 0)
        for dim in x.dims.keys() - {channel}:
            self.channels.hold(x.dims[dim], "lie along the space of a convolution")
        if groups == 1:
            self.open(w, 1, self.join(read, w.dims.get(1)) if w.shape[1] > 1 else None, made, x.pooled)
        elif w.shape[0] == w.shape[1] * groups:
            # Widening adds groups and leaves their size alone, so the first groups are the tiny network's.
            self.join(read, made)
            self.channels.require_multiple(made, w.shape[1])
            owner = self.owner(w)
            if vars(self.model.get_submodule(owner)).get("groups") != groups:
                raise _NotUnderstood("a grouped convolution whose module does not count its groups")
            self.found.integers.append((owner, "groups", made, groups))
            self.found.touched.append((owner, made))
        elif read is None or w.shape[1] == 1:
            raise _NotUnderstood(f"a grouped convolution from {x.shape[channel]} to {w.shape[0]} channels")
        else:
            # Other numbers go in than come out: the groups keep their number, each of them is widened.
            self.open(w, 1, read, made, x.pooled)
            self.join(self.equal_parts(read, groups)[0], w.dims[1])
            self.equal_parts(made, groups)
        if bias is not None:
            self.join(made, bias.dims.get(0))
        return Value(out.shape, {channel: made}, pooled=x.pooled)

    def made(self, weight: Value, dim: int) -> Layout:
        """The channels that a weight makes."""
        if dim in weight.dims:
            return weight.dims[dim]
        made = self.channels.new(weight.shape[dim])
        many = weight.shape[dim] > 1
        self.channels.hold(made, "made by a weight that is computed, not stored" if many else "a single channel")
        return made

    def owner(self, weight: Value) -> str:
        """Name of the module whose weight it is; of the one whose code is being read, if the weight is computed."""
        return weight.parameter.rpartition(".")[0] if weight.parameter else self.module

    def equal_parts(self, layout: Layout, count: int) -> list[Layout]:
        """Divides channels into parts that stay equally wide."""
        self.found.divided = True
        size = self.channels.size(layout) // count
        parts = [self.channels.part(layout, size * i, size * (i + 1)) for i in range(count)]
        for part in parts[1:]:
            self.channels.tie(parts[0], part)
        return parts

    def transposed(self, out: Value, x: Value, w: Value, bias: Value | None = None, *settings: Any) -> Value:
        groups = settings[3] if len(settings) > 3 else 1
        if groups != 1:
            raise _NotUnderstood("a grouped transposed convolution")
        made = self.made(w, 1)
        self.open(w, 0, self.join(x.dims.get(1), w.dims.get(0)), made, x.pooled)
        if bias is not None:
            self.join(made, bias.dims.get(0))
        return Value(out.shape, {1: made})

    def linear(self, out: Value, x: Value, w: Value, bias: Value | None = None) -> Value:
        last = len(x.shape) - 1
        made = self.made(w, 0)
        self.open(w, 1, self.join(x.dims.get(last), w.dims.get(1)), made, x.pooled)
        if bias is not None:
            self.join(made, bias.dims.get(0))
        return Value(out.shape, {**x.dims, last: made}, pooled=x.pooled)

    def open(self, weight: Value, dim: int, read: Layout | None, made: Layout, pooled: bool) -> None:
        """Notes that channels are made from those along dimension ``dim`` of a weight."""
        owner = self.owner(weight)
        self.found.reads[weight.parameter or f"{owner}.weight"] = dim
        self.found.openings.append(Opening(owner, made, read, pooled))
        self.found.touched.append((owner, made))
        if read is not None:
            self.found.touched.append((owner, read))

    def norm(self, out: Value, x: Value, *args: Any, **kwargs: Any) -> Value:
        """Batch and instance norm: every further tensor is a vector over the channels."""
        for vector in _flat((args, list(kwargs.values()))):
            if isinstance(vector, Value) and vector.shape:
                self.join(x.dims.get(1), vector.dims.get(0))
                if self.operator == "instance_norm":  # which compares, a batch norm does not
                    self.count(vector, "num_features", x.dims.get(1), x.shape[1])
        return Value(out.shape, x.dims, pooled=x.pooled)

    def count(self, vector: Value, attribute: str, layout: Layout | None, base: int | tuple[int, ...]) -> None:
        """Notes that the module of a norm's vector counts channels in an attribute, if it has that."""
        owner = self.owner(vector)
        if layout is not None and attribute in vars(self.model.get_submodule(owner)):
            self.found.integers.append((owner, attribute, layout, base))

    def layer_norm(self, out: Value, x: Value, size: list[int], *args: Any, **kwargs: Any) -> Value:
        channel = len(x.shape) - len(size)
        vectors = [v for v in _flat((args, list(kwargs.values()))) if isinstance(v, Value)]
        if math.prod(size[1:]) > 1 or not vectors or vectors[0].parameter is None:
            raise _NotUnderstood("a layer norm over more than the channels, or without weights")
        for vector in vectors:
            self.join(x.dims.get(channel), vector.dims.get(0))
        self.count(vectors[0], "normalized_shape", x.dims.get(channel), tuple(size))
        return Value(out.shape, x.dims, pooled=x.pooled)

    def group_norm(self, out: Value, x: Value, groups: int, *args: Any, **kwargs: Any) -> Value:
        vectors = [v for v in _flat((args, list(kwargs.values()))) if isinstance(v, Value)]
        for vector in vectors:
            self.join(x.dims.get(1), vector.dims.get(0))
        if groups > 1 and 1 in x.dims:  # one group stays one group; more keep their size and grow in number
            if not vectors or vectors[0].parameter is None:
                raise _NotUnderstood("a group norm without weights")
            self.channels.require_multiple(x.dims[1], x.shape[1] // groups)
            self.count(vectors[0], "num_groups", x.dims[1], groups)
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

    def turned(self, out: Value, x: Value, *args: Any) -> Value:
        """``flip`` and ``roll``, whose last argument says along which dimensions."""
        everywhere = self.operator == "roll" and (len(args) < 2 or not args[1])
        if everywhere or any(d % len(x.shape) in x.dims for d in _flat(args[-1])):
            raise _NotUnderstood("channels change their order")
        return Value(out.shape, x.dims, pooled=x.pooled)

    def pad(self, out: Value, x: Value, padding: list[int], *args: Any) -> Value:
        for dim in x.dims:
            if out.shape[dim] != x.shape[dim]:
                raise _NotUnderstood("channels are padded")
        return Value(out.shape, x.dims, pooled=x.pooled)

    def reduce(self, out: Value, x: Value, dim: list[int] | int | None = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(out, list | tuple):
            return [self.reduce(item, x, dim) for item in out]
        gone = range(len(x.shape)) if dim in (None, []) else [d % len(x.shape) for d in _flat(dim)]
        kept = len(out.shape) == len(x.shape)
        dims = {d if kept else d - sum(g < d for g in gone): layout for d, layout in x.dims.items() if d not in gone}
        pooled = x.pooled or (len(x.shape) == 4 and {2, 3} <= set(gone))
        return Value(out.shape, dims, pooled=pooled)

    def vector_norm(self, out: Value, x: Value, order: float = 2, *args: Any, **kwargs: Any) -> Value:
        return self.reduce(out, x, *args, **kwargs)

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

    def attention(self, out: Value, q: Value, k: Value, v: Value, *args: Any, **kwargs: Any) -> Value:
        scores = Value((*q.shape[:-1], k.shape[-2]))
        turned = self.transpose(Value((*k.shape[:-2], k.shape[-1], k.shape[-2])), k, len(k.shape) - 2, len(k.shape) - 1)
        return self.matmul(out, self.matmul(scores, q, turned), v)

    def reshape(self, out: Value, x: Value, *args: Any) -> Value:
        """Dimensions stay what they are, or fold: channels behind fixed dimensions become one row of them, or back.

        Folded channels are the same channels over and over (groups, heads or radix of an attention): one layout,
        repeated. Channels in front of others (a flattened feature map, the way back of a channel shuffle) would lie
        interleaved: the tiny network's would no longer come first.
        """
        if not math.prod(x.shape):
            raise _NotUnderstood("an empty tensor")
        if self.operator in ("view", "reshape", "_unsafe_view", "unflatten"):
            self.found.divided = True  # the graph does not tell a number written down from one that follows the width
        dims = {}
        for ours, theirs in _factors(x.shape, out.shape):
            ours, theirs = [d for d in ours if x.shape[d] > 1], [e for e in theirs if out.shape[e] > 1]
            if not any(d in x.dims for d in ours):
                continue
            if [x.shape[d] for d in ours] == [out.shape[e] for e in theirs]:
                dims |= {e: x.dims[d] for d, e in zip(ours, theirs, strict=True) if d in x.dims}
                continue
            if any(d in x.dims for d in ours[:-1]):
                raise _NotUnderstood(f"channels are folded: {x.shape} becomes {out.shape}")
            row = x.dims[ours[-1]] * math.prod(x.shape[d] for d in ours[:-1])
            size = out.shape[theirs[-1]]
            parts = [self.channels.part(row, start, start + size) for start in range(0, self.channels.size(row), size)]
            for part in parts[1:]:
                self.channels.join(parts[0], part)
            dims[theirs[-1]] = parts[0]
        return Value(out.shape, dims, pooled=x.pooled)

    def matmul(self, out: Value, x: Value, y: Value) -> Value:
        """Batched products: rows of the first, columns of the second, whatever is summed over is the same."""
        if min(len(x.shape), len(y.shape)) < 2:
            raise _NotUnderstood("a product with a vector")
        rows, columns = len(out.shape) - 2, len(out.shape) - 1
        for weight, features, read, made, at in ((y, x, 0, 1, columns), (x, y, 1, 0, rows)):
            if weight.parameter and len(weight.shape) == 2:  # a linear layer, on either side
                of_features = {d + len(out.shape) - len(features.shape): layout for d, layout in features.dims.items()}
                layout = self.made(weight, made)
                self.open(weight, read, self.join(of_features.get(at), weight.dims.get(read)), layout, features.pooled)
                return Value(out.shape, {**of_features, at: layout}, pooled=features.pooled)
        summed = x.dims.get(len(x.shape) - 1), y.dims.get(len(y.shape) - 2)
        if any(summed):
            self.join(*summed)
        flat = [
            Value((*v.shape[:-2], 1, 1), {d: layout for d, layout in v.dims.items() if d < len(v.shape) - 2})
            for v in (x, y)
        ]
        dims = self.pointwise(Value((*out.shape[:-2], 1, 1)), *flat).dims
        if len(x.shape) - 2 in x.dims:
            dims[rows] = x.dims[len(x.shape) - 2]
        if len(y.shape) - 1 in y.dims:
            dims[columns] = y.dims[len(y.shape) - 1]
        return Value(out.shape, dims)

    def expand(self, out: Value, x: Value, *args: Any, **kwargs: Any) -> Value:
        shift = len(out.shape) - len(x.shape)
        return Value(out.shape, {d + shift: layout for d, layout in x.dims.items()}, pooled=x.pooled)

    def expand_as(self, out: Value, x: Value, like: Value) -> Value:
        own = self.expand(out, x).dims
        return Value(out.shape, {d: own.get(d, layout) for d, layout in like.dims.items()} | own, pooled=x.pooled)

    def sliced(
        self, out: Value, x: Value, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
    ) -> Value:
        dim %= len(x.shape)
        dims = dict(x.dims)
        if dim in dims and out.shape[dim] != x.shape[dim]:
            # As with split: of several equal parts, one.
            first, size = slice(start, stop).indices(x.shape[dim])[0], out.shape[dim]
            if step != 1 or x.shape[dim] % size or first % size:
                raise _NotUnderstood("channels are split into unequal parts")
            dims[dim] = self.equal_parts(dims[dim], x.shape[dim] // size)[first // size]
        return Value(out.shape, dims, pooled=x.pooled)

    def select(self, out: Value, x: Value, dim: int, index: int) -> Value:
        dim %= len(x.shape)
        if dim in x.dims:
            raise _NotUnderstood("a single channel is selected")
        return Value(out.shape, {d - (d > dim): layout for d, layout in x.dims.items()}, pooled=x.pooled)

    def unbind(self, out: list[Value], x: Value, dim: int = 0) -> list[Value]:
        return [self.select(item, x, dim, i) for i, item in enumerate(out)]

    def split(self, out: list[Value], x: Value, sizes: Any, dim: int = 0) -> list[Value]:
        """``chunk`` and ``split`` into parts of equal size, which stay equally wide."""
        dim %= len(x.shape)
        if dim not in x.dims:
            return [Value(item.shape, x.dims, pooled=x.pooled) for item in out]
        size = out[0].shape[dim]
        if any(item.shape[dim] != size for item in out):
            raise _NotUnderstood("channels are split into unequal parts")
        parts = self.equal_parts(x.dims[dim], len(out))
        if sizes == size:  # written as a number, which a module may keep: its attribute counts the channels
            module = self.model.get_submodule(self.module)
            integers = {name: value for name, value in vars(module).items() if type(value) is int}
            equal = [name for name in _read_by_methods(module) if integers.get(name) == size]
            if len(equal) == 1:  # of several it cannot be told which one it is
                self.found.integers.append((self.module, equal[0], parts[0], size))
        return [
            Value(item.shape, {**x.dims, dim: part}, pooled=x.pooled) for item, part in zip(out, parts, strict=True)
        ]

    def black_box(self, out: Value, *args: Any) -> Value:
        raise _NotUnderstood(f"{self.module or 'a part of the network'} cannot be traced")


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
    **dict.fromkeys(["zeros_like", "ones_like", "full_like", "softmax", "log_softmax"], _Reader.same),
    **dict.fromkeys(["feature_dropout", "alpha_dropout", "feature_alpha_dropout"], _Reader.same),
    **dict.fromkeys(["flip", "roll"], _Reader.turned),
    **dict.fromkeys(["pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"], _Reader.pad),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "var", "std", "max", "min"], _Reader.reduce),
    "linalg_vector_norm": _Reader.vector_norm,
    **dict.fromkeys(["cat", "concat"], _Reader.cat),
    "stack": _Reader.stack,
    "permute": _Reader.permute,
    **dict.fromkeys(["transpose", "swapaxes", "swapdims"], _Reader.transpose),
    **dict.fromkeys(
        ["view", "view_as", "reshape", "reshape_as", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"],
        _Reader.reshape,
    ),
    **dict.fromkeys(["expand", "broadcast_to"], _Reader.expand),
    "expand_as": _Reader.expand_as,
    "slice": _Reader.sliced,
    "select": _Reader.select,
    **dict.fromkeys(["matmul", "bmm"], _Reader.matmul),
    "scaled_dot_product_attention": _Reader.attention,
    "black_box": _Reader.black_box,
    "unbind": _Reader.unbind,
    "chunk": lambda reader, out, x, count, dim=0: reader.split(out, x, None, dim),
    **dict.fromkeys(["split", "split_with_sizes"], _Reader.split),
}


def _factors(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Iterator[tuple[range, range]]:
    """Matches the dimensions of two shapes of one tensor: the smallest stretches with equal numbers of elements."""
    i = j = 0
    while i < len(ours) or j < len(theirs):
        first, other = i, j
        i, j = min(i + 1, len(ours)), min(j + 1, len(theirs))
        while (left := math.prod(ours[first:i])) != (right := math.prod(theirs[other:j])):
            if left < right:
                i += 1
            else:
                j += 1
        yield range(first, i), range(other, j)


def _read_by_methods(module: nn.Module) -> set[str]:
    """Names that the methods of a module refer to, but for its constructor."""
    own = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    methods = [value for kind in own for name, value in vars(kind).items() if name != "__init__"]
    codes = [method.__code__ for method in methods if inspect.isfunction(method)]
    names: set[str] = set()
    for code in codes:  # which grows by the functions inside
        names.update(code.co_names)
        codes.extend(constant for constant in code.co_consts if inspect.iscode(constant))
    return names


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
