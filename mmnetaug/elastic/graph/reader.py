"""Reads the channel structure of a plain network off its exported graph.

``Reader`` interprets the graph of a forward pass (``export.py``) once over ``Channels``. This tells, for every
parameter, which runs of channels its dimensions consist of. Channels that an operator without a rule (``rules.py``)
touches stay at base width, with the reason.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .black_box import Boxes, find_black_boxes, reason_of
from .channels import ChannelsDiffer, Layout
from .export import Forward, Ref, Step, TraceError, evaluating, export
from .rules import RULES, pointwise
from .structure import NotUnderstood, Producer, Trace, Value, values_in

OUTPUT = "an output of the network"
"""Why the channels of outputs stay at base width."""


def trace(model: nn.Module, forward: Forward, image: Tensor) -> Trace:
    """Traces a plain network.

    Args:
        model: The network; its mode is restored.
        forward: Calls the network and returns its output tensors, whose channels stay at base width.
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
    Reader(model, found).read()
    return found


class Reader:
    """Interprets the graph step by step and fills ``found``."""

    def __init__(self, model: nn.Module, found: Trace) -> None:
        self.model, self.found, self.channels = model, found, found.channels
        self.step: Step  # the current one

    def read(self) -> None:
        graph, values = self.found.graph, self.found.values
        values |= {ref: self.source(name, ref) for name, ref in graph.sources}
        for step in graph.steps:
            self.step = step
            self.found.count_arguments.append({})
            args, kwargs = pytree.tree_map_only(Ref, values.get, (step.args, step.kwargs))
            results = [value for value in pytree.tree_leaves(self.interpret(args, kwargs)) if isinstance(value, Value)]
            values |= {ref: value for ref, value in zip(step.refs, results, strict=True)}
        for ref in graph.outputs:
            self.hold(values[ref], OUTPUT)

    def source(self, name: str | None, ref: Ref) -> Value:
        """Creates the value of a parameter or buffer, or of the image or a constant, which have no name."""
        if name is None:
            return Value(ref.shape)
        dims = {dim: self.channels.new(size) for dim, size in enumerate(ref.shape) if size > 1}
        self.found.parameters[name] = dims
        return Value(ref.shape, dims, parameter=name)

    def interpret(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        step = self.step
        results = pytree.tree_map_only(Ref, lambda ref: Value(ref.shape), step.results)
        where = f"{step.name} in {step.module or 'the network'}"
        elementwise = torch.Tag.pointwise in getattr(_functional(step.target), "tags", ())
        rule = RULES.get(step.name, pointwise if elementwise else None)
        sources = values_in(args, kwargs)
        if not any(value.dims for value in sources):
            return results
        try:
            if rule is None:
                raise NotUnderstood(f"{where} is not understood")
            try:
                inspect.signature(rule).bind(self, results, *args, **kwargs)
            except TypeError as unexpected:
                raise NotUnderstood(f"{where}: {unexpected}") from None
            return rule(self, results, *args, **kwargs)
        except (NotUnderstood, ChannelsDiffer) as problem:
            reason = str(problem) if isinstance(problem, NotUnderstood) else f"{problem} at {where}"
            for value in sources:
                self.hold(value, reason)
            return results

    def note_argument(self, argument: str, *counted: tuple[Layout, int]) -> None:
        """Records that numbers in an argument of the operator count channels, or groups or parts of them."""
        self.found.count_arguments[-1][argument] = list(counted)

    def hold(self, value: Value, reason: str) -> None:
        for layout in value.dims.values():
            self.channels.hold(layout, reason)

    def join(self, a: Layout | None, b: Layout | None) -> Layout | None:
        """Joins the channels of two operands, of which either may be fixed (None)."""
        if a is not None and b is not None:
            self.channels.join(a, b)
        elif a is not None or b is not None:
            self.channels.hold(a or b, "meets a fixed number of channels")
        return a or b

    def made(self, weight: Value, dim: int, bias: Value | None = None) -> Layout:
        """The output channels of a weight, joined with those of the bias."""
        made = weight.dims.get(dim)
        if made is None:
            made = self.channels.new(weight.shape[dim])
            many = weight.shape[dim] > 1
            self.channels.hold(made, "made by a weight that is computed, not stored" if many else "a single channel")
        if bias is not None:
            self.join(made, bias.dims.get(0))
        return made

    def owner(self, weight: Value) -> str:
        """Name of the module that owns a weight, or of the one whose code is being read if the weight is computed."""
        return weight.parameter.rpartition(".")[0] if weight.parameter else self.step.module

    def equal_parts(self, layout: Layout, count: int) -> list[Layout]:
        """Splits channels into parts that stay equally wide."""
        size = self.channels.size(layout) // count
        parts = [self.channels.part(layout, size * i, size * (i + 1)) for i in range(count)]
        for part in parts[1:]:
            self.channels.tie(parts[0], part)
        return parts

    def note_producer(self, weight: Value, dim: int, read: Layout | None, made: Layout, pooled: bool) -> None:
        """Records that a weight maps the channels along its dimension ``dim`` to new ones."""
        owner = self.owner(weight)
        self.found.input_dims[weight.parameter or f"{owner}.weight"] = dim
        self.found.producers.append(Producer(owner, made, read, pooled))
        self.found.uses.append((owner, made))
        if read is not None:
            self.found.uses.append((owner, read))

    def note_attribute(self, vector: Value, attribute: str, layout: Layout | None, base: int | tuple[int, ...]) -> None:
        """Records that the module that owns a vector counts channels in an attribute, if it has that attribute."""
        owner = self.owner(vector)
        if layout is not None and attribute in vars(self.model.get_submodule(owner)):
            self.found.count_attributes.append((owner, attribute, layout, base))

    def note_literal(self, size: int, layout: Layout) -> None:
        """Records the attribute that counts channels: the only one with this value that the module's methods use."""
        module = self.model.get_submodule(self.step.module)
        integers = {name: value for name, value in vars(module).items() if type(value) is int}
        equal = [name for name in _read_by_methods(module) if integers.get(name) == size]
        if len(equal) == 1:  # among several it is unknown which one
            self.found.count_attributes.append((self.step.module, equal[0], layout, size))


def _read_by_methods(module: nn.Module) -> set[str]:
    """Names that the methods of a module refer to, except for its constructor."""
    own = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    methods = [value for kind in own for name, value in vars(kind).items() if name != "__init__"]
    codes = [method.__code__ for method in methods if inspect.isfunction(method)]
    names: set[str] = set()
    for code in codes:  # grows by nested functions
        names.update(code.co_names)
        codes.extend(constant for constant in code.co_consts if inspect.iscode(constant))
    return names


def _functional(target: Any) -> Any:
    """The functional variant of an in-place operator, since only that one carries the pointwise tag."""
    packet = getattr(target, "overloadpacket", None)
    name = str(packet).rpartition(".")[2]
    if packet is None or not name.endswith("_") or name.startswith("__"):
        return target
    twin = getattr(torch.ops.aten, name.rstrip("_"), None)
    return getattr(twin, target.__name__.partition(".")[2], target) if twin is not None else target
