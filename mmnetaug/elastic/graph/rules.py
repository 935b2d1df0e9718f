"""The rules: which channels the result of an operator has, and which channels must share one width.

A rule is called as ``rule(reader, out, *arguments)``, with a ``Value`` for the operator's result and for every tensor
among its arguments, and returns the result with its layouts. It raises ``NotUnderstood`` for uses that it does not
cover: the channels then stay at base width, with that reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.utils import _pytree as pytree

from .channels import Layout
from .structure import NotUnderstood, Value, matching_dims, values_in

if TYPE_CHECKING:
    from .reader import Reader

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
"""The rule of each operator, by its name without overload and trailing underscore.

Operators outside of PyTorch are named with their namespace: ``"mine::my_activation"``. Operators that PyTorch tags as
pointwise need none.
"""


def register_rule(*operators: str) -> Callable[[Rule], Rule]:
    """Registers a function as the rule for operators, given by name; replaces the rule that they had."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


@register_rule("conv2d")
def convolution(
    reader: Reader, out: Value, x: Value, w: Value, bias: Value | None = None, *settings: Any, groups: int = 1
) -> Value:
    if settings and isinstance(settings[-1], int) and len(settings) >= 4:
        groups = settings[3]
    channel = 1 if len(x.shape) == len(w.shape) else 0
    read, made = x.dims.get(channel), reader.made(w, 0, bias)
    for dim in x.dims.keys() - {channel}:
        reader.channels.hold(x.dims[dim], "lie along the space of a convolution")
    if groups == 1:
        reader.note_producer(w, 1, reader.join(read, w.dims.get(1)) if w.shape[1] > 1 else None, made, x.pooled)
    elif w.shape[0] == w.shape[1] * groups:
        # Widening adds groups and keeps their size, so the first groups are the tiny network's.
        reader.join(read, made)
        reader.channels.require_multiple(made, w.shape[1])
        owner = reader.owner(w)
        if vars(reader.model.get_submodule(owner)).get("groups") != groups:
            raise NotUnderstood("a grouped convolution whose module does not count its groups")
        reader.found.count_attributes.append((owner, "groups", made, groups))
        reader.note_argument("groups", (made, groups))
        reader.found.uses.append((owner, made))
    elif read is None or w.shape[1] == 1:
        raise NotUnderstood(f"a grouped convolution from {x.shape[channel]} to {w.shape[0]} channels")
    else:
        # Input and output differ: the number of groups stays, and each of them is widened.
        reader.note_producer(w, 1, read, made, x.pooled)
        reader.join(reader.equal_parts(read, groups)[0], w.dims[1])
        reader.equal_parts(made, groups)
    return Value(out.shape, {channel: made}, pooled=x.pooled)


@register_rule("conv_transpose2d")
def transposed_convolution(
    reader: Reader, out: Value, x: Value, w: Value, bias: Value | None = None, *settings: Any
) -> Value:
    groups = settings[3] if len(settings) > 3 else 1
    if groups != 1:
        raise NotUnderstood("a grouped transposed convolution")
    made = reader.made(w, 1, bias)
    reader.note_producer(w, 0, reader.join(x.dims.get(1), w.dims.get(0)), made, x.pooled)
    return Value(out.shape, {1: made})


@register_rule("linear")
def linear(reader: Reader, out: Value, x: Value, w: Value, bias: Value | None = None) -> Value:
    last = len(x.shape) - 1
    made = reader.made(w, 0, bias)
    reader.note_producer(w, 1, reader.join(x.dims.get(last), w.dims.get(1)), made, x.pooled)
    return Value(out.shape, {**x.dims, last: made}, pooled=x.pooled)


@register_rule("batch_norm", "instance_norm")
def batch_norm(reader: Reader, out: Value, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Batch and instance norm: all other tensors are vectors over the channels."""
    for vector in values_in(args, kwargs):
        if vector.shape:
            reader.join(x.dims.get(1), vector.dims.get(0))
            if reader.step.name == "instance_norm":  # which checks the number, unlike batch norm
                reader.note_attribute(vector, "num_features", x.dims.get(1), x.shape[1])
    return Value(out.shape, x.dims, pooled=x.pooled)


@register_rule("layer_norm")
def layer_norm(reader: Reader, out: Value, x: Value, size: list[int], *args: Any, **kwargs: Any) -> Value:
    channel = len(x.shape) - len(size)
    vectors = values_in(args, kwargs)
    if math.prod(size[1:]) > 1 or not vectors or vectors[0].parameter is None:
        raise NotUnderstood("a layer norm over more than the channels, or without weights")
    for vector in vectors:
        reader.join(x.dims.get(channel), vector.dims.get(0))
    if channel in x.dims:
        reader.note_attribute(vectors[0], "normalized_shape", x.dims[channel], tuple(size))
        reader.note_argument("normalized_shape", (x.dims[channel], size[0]))
    return Value(out.shape, x.dims, pooled=x.pooled)


@register_rule("group_norm")
def group_norm(reader: Reader, out: Value, x: Value, groups: int, *args: Any, **kwargs: Any) -> Value:
    vectors = values_in(args, kwargs)
    for vector in vectors:
        reader.join(x.dims.get(1), vector.dims.get(0))
    if groups > 1 and 1 in x.dims:  # a single group stays single; several keep their size and grow in number
        if not vectors or vectors[0].parameter is None:
            raise NotUnderstood("a group norm without weights")
        reader.channels.require_multiple(x.dims[1], x.shape[1] // groups)
        reader.note_attribute(vectors[0], "num_groups", x.dims[1], groups)
        reader.note_argument("num_groups", (x.dims[1], groups))
    return Value(out.shape, x.dims, pooled=x.pooled)


@register_rule("prelu")
def prelu(reader: Reader, out: Value, x: Value, weight: Value) -> Value:
    if math.prod(weight.shape) > 1:
        reader.join(x.dims.get(1), weight.dims.get(0))
    return Value(out.shape, x.dims, pooled=x.pooled)


@register_rule("hardswish", "where", "masked_fill")
def pointwise(reader: Reader, out: Value, *args: Any, **kwargs: Any) -> Value:
    """Elementwise operators, with operands broadcast from the last dimension."""
    operands = values_in(args, kwargs)
    dims: dict[int, Layout] = {}
    for dim, size in enumerate(out.shape):
        layouts = []
        for operand in operands:
            own = dim - len(out.shape) + len(operand.shape)
            if own >= 0 and operand.shape[own] == size and size > 1:
                layouts.append(operand.dims.get(own))
        if any(layout is not None for layout in layouts):
            for layout in layouts[1:]:
                reader.join(layouts[0], layout)
            dims[dim] = next(layout for layout in layouts if layout is not None)
    gates = [operand for operand in operands if operand.pooled and operand.dims]
    if gates and any(not operand.pooled and operand.parameter is None and operand.dims for operand in operands):
        reader.found.gated.extend(dims.values())
    return Value(out.shape, dims, pooled=bool(operands) and all(v.pooled or v.parameter for v in operands))


@register_rule("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
@register_rule("upsample_nearest2d", "upsample_bilinear2d", "pad")
@register_rule("contiguous", "clone", "alias", "detach", "to", "type_as", "softmax", "dropout", "feature_dropout")
def keep(reader: Reader, out: Value, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Operators that keep the order of dimensions and the number of channels (pooling, resizing, padding)."""
    if isinstance(out, list | tuple):
        return [keep(reader, item, x) for item in out]
    for dim in x.dims:
        if out.shape[dim] != x.shape[dim]:
            raise NotUnderstood(f"{x.shape[dim]} channels become {out.shape[dim]}")
    pooled = x.pooled or (len(out.shape) == 4 and out.shape[2:] == (1, 1) and x.shape[2:] != (1, 1))
    return Value(out.shape, x.dims, pooled=pooled)


@register_rule("flip", "roll")
def flip(reader: Reader, out: Value, x: Value, *args: Any) -> Value:
    """``flip`` and ``roll``, whose last argument lists the dimensions."""
    everywhere = reader.step.name == "roll" and (len(args) < 2 or not args[1])
    if everywhere or any(d % len(x.shape) in x.dims for d in pytree.tree_leaves(args[-1])):
        raise NotUnderstood("channels change their order")
    return Value(out.shape, x.dims, pooled=x.pooled)


@register_rule("mean", "sum", "amax", "max", "var")
def reduce(reader: Reader, out: Value, x: Value, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    if isinstance(dim, Value):  # the larger of two tensors
        return pointwise(reader, out, x, dim)
    if isinstance(out, list | tuple):
        return [reduce(reader, item, x, dim) for item in out]
    gone = range(len(x.shape)) if dim in (None, []) else [d % len(x.shape) for d in pytree.tree_leaves(dim)]
    kept = len(out.shape) == len(x.shape)
    dims = {d if kept else d - sum(g < d for g in gone): layout for d, layout in x.dims.items() if d not in gone}
    pooled = x.pooled or (len(x.shape) == 4 and {2, 3} <= set(gone))
    return Value(out.shape, dims, pooled=pooled)


@register_rule("linalg_vector_norm")
def vector_norm(reader: Reader, out: Value, x: Value, order: float = 2, *args: Any, **kwargs: Any) -> Value:
    return reduce(reader, out, x, *args, **kwargs)


@register_rule("cat", "concat")
def cat(reader: Reader, out: Value, tensors: list[Value], dim: int = 0) -> Value:
    dim %= len(out.shape)
    tensors = [tensor for tensor in tensors if math.prod(tensor.shape)]
    dims: dict[int, Layout] = {}
    for d in range(len(out.shape)):
        if not any(d in tensor.dims for tensor in tensors):
            continue
        if d != dim:
            for tensor in tensors[1:]:
                reader.join(tensors[0].dims.get(d), tensor.dims.get(d))
            dims[d] = next(tensor.dims[d] for tensor in tensors if d in tensor.dims)
            continue
        dims[d] = ()
        for tensor in tensors:
            layout = tensor.dims.get(d)
            if layout is None:
                layout = reader.channels.new(tensor.shape[d])
                reader.channels.hold(layout, "a fixed number of channels")
            dims[d] += layout
    return Value(out.shape, dims, pooled=all(tensor.pooled for tensor in tensors))


@register_rule("stack")
def stack(reader: Reader, out: Value, tensors: list[Value], dim: int = 0) -> Value:
    dim %= len(out.shape)
    moved = [Value(t.shape, {d + (d >= dim): layout for d, layout in t.dims.items()}) for t in tensors]
    dims = dict(moved[0].dims)
    for tensor in moved[1:]:
        for d in dims.keys() | tensor.dims.keys():
            dims[d] = reader.join(dims.get(d), tensor.dims.get(d))
    return Value(out.shape, dims)


@register_rule("permute")
def permute(reader: Reader, out: Value, x: Value, order: list[int]) -> Value:
    order = [d % len(x.shape) for d in order]
    return Value(out.shape, {order.index(d): layout for d, layout in x.dims.items()}, pooled=x.pooled)


@register_rule("transpose")
def transpose(reader: Reader, out: Value, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return permute(reader, out, x, order)


@register_rule("scaled_dot_product_attention")
def attention(reader: Reader, out: Value, q: Value, k: Value, v: Value, *args: Any, **kwargs: Any) -> Value:
    scores = Value((*q.shape[:-1], k.shape[-2]))
    turned = transpose(reader, Value((*k.shape[:-2], k.shape[-1], k.shape[-2])), k, len(k.shape) - 2, len(k.shape) - 1)
    return matmul(reader, out, matmul(reader, scores, q, turned), v)


@register_rule("view", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze")
def reshape(reader: Reader, out: Value, x: Value, *args: Any) -> Value:
    """Dimensions stay, or channels are folded with fixed dimensions in front of them, or unfolded.

    Folded channels are the same channels repeatedly (groups, heads or the radix of an attention): one layout,
    repeated. Channels in front of other dimensions (a flattened feature map, the way back of a channel shuffle) would
    be interleaved: the tiny network's would no longer come first.
    """
    if not math.prod(x.shape):
        raise NotUnderstood("an empty tensor")
    dims: dict[int, Layout] = {}
    for read, made in matching_dims(x.shape, out.shape):
        ours, theirs = [d for d in read if x.shape[d] > 1], [e for e in made if out.shape[e] > 1]
        if not any(d in x.dims for d in ours):
            continue
        if [x.shape[d] for d in ours] == [out.shape[e] for e in theirs]:
            dims |= {e: x.dims[d] for d, e in zip(ours, theirs, strict=True) if d in x.dims}
            continue
        if any(d in x.dims for d in ours[:-1]):
            raise NotUnderstood(f"channels are folded: {x.shape} becomes {out.shape}")
        row = x.dims[ours[-1]] * math.prod(x.shape[d] for d in ours[:-1])
        size = out.shape[theirs[-1]]
        parts = [reader.channels.part(row, start, start + size) for start in range(0, reader.channels.size(row), size)]
        for part in parts[1:]:
            reader.channels.join(parts[0], part)
        dims[theirs[-1]] = parts[0]
    return Value(out.shape, dims, pooled=x.pooled)


@register_rule("matmul", "bmm")
def matmul(reader: Reader, out: Value, x: Value, y: Value) -> Value:
    """Batched products: rows of the first operand, columns of the second; the summed dimensions are joined."""
    if min(len(x.shape), len(y.shape)) < 2:
        raise NotUnderstood("a product with a vector")
    rows, columns = len(out.shape) - 2, len(out.shape) - 1
    for weight, features, read, made, at in ((y, x, 0, 1, columns), (x, y, 1, 0, rows)):
        if weight.parameter and len(weight.shape) == 2:  # a linear layer, on either side
            of_features = {d + len(out.shape) - len(features.shape): layout for d, layout in features.dims.items()}
            layout = reader.made(weight, made)
            reader.note_producer(
                weight, read, reader.join(of_features.get(at), weight.dims.get(read)), layout, features.pooled
            )
            return Value(out.shape, {**of_features, at: layout}, pooled=features.pooled)
    summed = x.dims.get(len(x.shape) - 1), y.dims.get(len(y.shape) - 2)
    if any(summed):
        reader.join(*summed)
    batches = [
        Value((*v.shape[:-2], 1, 1), {d: layout for d, layout in v.dims.items() if d < len(v.shape) - 2})
        for v in (x, y)
    ]
    dims = pointwise(reader, Value((*out.shape[:-2], 1, 1)), *batches).dims
    if len(x.shape) - 2 in x.dims:
        dims[rows] = x.dims[len(x.shape) - 2]
    if len(y.shape) - 1 in y.dims:
        dims[columns] = y.dims[len(y.shape) - 1]
    return Value(out.shape, dims)


@register_rule("expand")
def expand(reader: Reader, out: Value, x: Value, *args: Any, **kwargs: Any) -> Value:
    shift = len(out.shape) - len(x.shape)
    return Value(out.shape, {d + shift: layout for d, layout in x.dims.items()}, pooled=x.pooled)


@register_rule("expand_as")
def expand_as(reader: Reader, out: Value, x: Value, like: Value) -> Value:
    own = expand(reader, out, x).dims
    return Value(out.shape, {d: own.get(d, layout) for d, layout in like.dims.items()} | own, pooled=x.pooled)


@register_rule("slice")
def slice_(
    reader: Reader, out: Value, x: Value, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
) -> Value:
    dim %= len(x.shape)
    dims = dict(x.dims)
    if dim in dims and out.shape[dim] != x.shape[dim]:
        # one of several equal parts, as in split
        first, size = slice(start, stop).indices(x.shape[dim])[0], out.shape[dim]
        if step != 1 or x.shape[dim] % size or first % size:
            raise NotUnderstood("channels are split into unequal parts")
        dims[dim] = reader.equal_parts(dims[dim], x.shape[dim] // size)[first // size]
    for name, position in (("start", start), ("end", stop)):
        if dim in dims and position and -x.shape[dim] <= position <= x.shape[dim]:
            first, last = (0, position) if position > 0 else (x.shape[dim] + position, x.shape[dim])
            reader.note_argument(name, (reader.channels.part(x.dims[dim], first, last), position))
    return Value(out.shape, dims, pooled=x.pooled)


@register_rule("select")
def select(reader: Reader, out: Value, x: Value, dim: int, index: int) -> Value:
    dim %= len(x.shape)
    if dim in x.dims:
        raise NotUnderstood("a single channel is selected")
    return Value(out.shape, {d - (d > dim): layout for d, layout in x.dims.items()}, pooled=x.pooled)


@register_rule("unbind")
def unbind(reader: Reader, out: list[Value], x: Value, dim: int = 0) -> list[Value]:
    return [select(reader, item, x, dim, i) for i, item in enumerate(out)]


@register_rule("split", "split_with_sizes")
def split(reader: Reader, out: list[Value], x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    """``chunk`` and ``split`` into parts of equal size, which stay equally wide."""
    dim %= len(x.shape)
    if dim not in x.dims:
        return [Value(item.shape, x.dims, pooled=x.pooled) for item in out]
    size = out[0].shape[dim]
    if any(item.shape[dim] != size for item in out):
        raise NotUnderstood("channels are split into unequal parts")
    parts = reader.equal_parts(x.dims[dim], len(out))
    if isinstance(sizes, int):
        reader.note_argument("split_size", (parts[0], sizes))
    elif sizes is not None:
        for name in ("split_size", "split_sizes"):
            reader.note_argument(name, *zip(parts, sizes, strict=True))
    if sizes == size:  # written as a number, which the module may keep in an attribute
        reader.note_literal(size, parts[0])
    return [Value(item.shape, {**x.dims, dim: part}, pooled=x.pooled) for item, part in zip(out, parts, strict=True)]


@register_rule("mmnetaug::black_box")
def black_box(reader: Reader, out: Value, *args: Any) -> Value:
    raise NotUnderstood(f"{reader.step.module or 'a part of the network'} cannot be traced")


@register_rule("chunk")
def chunk(reader: Reader, out: list[Value], x: Value, count: int, dim: int = 0) -> list[Value]:
    return split(reader, out, x, None, dim)
