"""Reads the channel structure of a plain network off its exported graph.

Interpreting the graph of a forward pass (``graph.py``) once over ``Channels`` tells, for every parameter, which runs of
channels its dimensions consist of. Operators that are not in the table below are never guessed: the channels they touch
stay at base width, with the reason.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .black_box import Boxes, find_black_boxes
from .channels import Channels, ChannelsDiffer, Layout
from .graph import Forward, Graph, Ref, Step, TraceError, evaluating, export, reason_of


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
        graph: The graph at base widths.
        values: What is known of every tensor of the graph. Tells the shapes that are expected at any widths.
        counts: Per step of the graph, those of its arguments that count channels: by name, the layouts they count and
            their base values, one per number of a list.
        boxes: Modules that cannot be traced.
        gated: Layouts that are multiplied by a gate computed from their own pooled features.
    """

    channels: Channels = field(default_factory=Channels)
    parameters: dict[str, dict[int, Layout]] = field(default_factory=dict)
    openings: list[Opening] = field(default_factory=list)
    reads: dict[str, int] = field(default_factory=dict)
    touched: list[tuple[str, Layout]] = field(default_factory=list)
    integers: list[tuple[str, str, Layout, int | tuple[int, ...]]] = field(default_factory=list)
    graph: Graph = field(default_factory=Graph)
    values: dict[Ref, Value] = field(default_factory=dict)
    counts: list[dict[str, list[tuple[Layout, int]]]] = field(default_factory=list)
    boxes: Boxes = field(default_factory=dict)
    gated: list[Layout] = field(default_factory=list)


def trace(model: nn.Module, forward: Forward, image: Tensor) -> Trace:
    """Traces a plain network.

    Args:
        model: The network; its mode (train/eval) is restored.
        forward: Calls the network and returns its output tensors. Channels that reach an output stay at base width.
        image: An example input, (N, C, H, W).

    Raises:
        TraceError: If the network does not run on the image, or ``torch.export`` cannot trace it.
    """

    def run() -> None:
        with torch.no_grad():
            list(forward(model, image.clone()))

    boxes: Boxes = {}
    try:
        graph = export(model, forward, image, boxes)
    except TraceError:
        with evaluating(model):
            try:
                run()
            except Exception as error:
                message = f"{type(model).__name__} itself fails on images of shape {tuple(image.shape)}"
                raise TraceError(f"{message}: {reason_of(error)}") from error
            boxes = find_black_boxes(model, run)
        if not boxes:
            raise
        graph = export(model, forward, image, boxes)
    found = Trace(graph=graph, boxes=boxes)
    _Reader(model, found).read()
    return found


class _Reader:
    """Interprets the graph; ``found`` fills up as it goes."""

    def __init__(self, model: nn.Module, found: Trace) -> None:
        self.model, self.found, self.channels = model, found, found.channels
        self.step: Step  # that is being read

    def read(self) -> None:
        graph, values = self.found.graph, self.found.values
        values |= {ref: self.source(name, ref) for name, ref in graph.sources}
        for step in graph.steps:
            self.step = step
            self.found.counts.append({})
            args, kwargs = pytree.tree_map_only(Ref, values.get, (step.args, step.kwargs))
            results = [value for value in _flat(self.interpret(args, kwargs)) if isinstance(value, Value)]
            values |= {ref: value for ref, value in zip(step.refs, results, strict=True)}
        for ref in graph.outputs:
            self.hold(values[ref], "an output of the network")

    def source(self, name: str | None, ref: Ref) -> Value:
        """A parameter or a buffer by its name; the image and constants have none."""
        if name is None:
            return Value(ref.shape)
        dims = {dim: self.channels.new(size) for dim, size in enumerate(ref.shape) if size > 1}
        self.found.parameters[name] = dims
        return Value(ref.shape, dims, parameter=name)

    def interpret(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        step = self.step
        results = pytree.tree_map_only(Ref, lambda ref: Value(ref.shape), step.results)
        where = f"{step.name} in {step.module or 'the network'}"
        pointwise = torch.Tag.pointwise in getattr(_functional(step.target), "tags", ())
        rule = _Reader.pointwise if pointwise and step.name != "prelu" else _RULES.get(step.name)
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
        except (_NotUnderstood, ChannelsDiffer) as problem:
            reason = str(problem) if isinstance(problem, _NotUnderstood) else f"{problem} at {where}"
            for value in sources:
                self.hold(value, reason)
            return results

    def counts(self, argument: str, *counted: tuple[Layout, int]) -> None:
        """Notes that numbers in an argument of the operator count channels, or groups or parts of them."""
        self.found.counts[-1][argument] = list(counted)

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
            self.counts("groups", (made, groups))
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
        return weight.parameter.rpartition(".")[0] if weight.parameter else self.step.module

    def equal_parts(self, layout: Layout, count: int) -> list[Layout]:
        """Divides channels into parts that stay equally wide."""
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
                if self.step.name == "instance_norm":  # which compares, a batch norm does not
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
        if channel in x.dims:
            self.count(vectors[0], "normalized_shape", x.dims[channel], tuple(size))
            self.counts("normalized_shape", (x.dims[channel], size[0]))
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
            self.counts("num_groups", (x.dims[1], groups))
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
        everywhere = self.step.name == "roll" and (len(args) < 2 or not args[1])
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
        for name, position in (("start", start), ("end", stop)):
            if dim in dims and position and -x.shape[dim] <= position <= x.shape[dim]:
                first, last = (0, position) if position > 0 else (x.shape[dim] + position, x.shape[dim])
                self.counts(name, (self.channels.part(x.dims[dim], first, last), position))
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
        if isinstance(sizes, int):
            self.counts("split_size", (parts[0], sizes))
        elif sizes is not None:
            for name in ("split_size", "split_sizes"):
                self.counts(name, *zip(parts, sizes, strict=True))
        if sizes == size:  # written as a number, which a module may keep: its attribute counts the channels
            module = self.model.get_submodule(self.step.module)
            integers = {name: value for name, value in vars(module).items() if type(value) is int}
            equal = [name for name in _read_by_methods(module) if integers.get(name) == size]
            if len(equal) == 1:  # of several it cannot be told which one it is
                self.found.integers.append((self.step.module, equal[0], parts[0], size))
        return [
            Value(item.shape, {**x.dims, dim: part}, pooled=x.pooled) for item, part in zip(out, parts, strict=True)
        ]

    def black_box(self, out: Value, *args: Any) -> Value:
        raise _NotUnderstood(f"{self.step.module or 'a part of the network'} cannot be traced")


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


def _flat(item: Any) -> list[Any]:
    if isinstance(item, list | tuple):
        return [leaf for part in item for leaf in _flat(part)]
    return [item]


def _functional(target: Any) -> Any:
    """The functional twin of an in-place operator: only that one carries the pointwise tag."""
    packet = getattr(target, "overloadpacket", None)
    name = str(packet).rpartition(".")[2]
    if packet is None or not name.endswith("_") or name.startswith("__"):
        return target
    twin = getattr(torch.ops.aten, name.rstrip("_"), None)
    return getattr(twin, target._overloadname, target) if twin is not None else target
