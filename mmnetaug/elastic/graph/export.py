"""The exported graph of a forward pass, as a list of operators that can be compared between widths.

``torch.export`` gives nodes that refer to each other, with regions (autocast, no_grad) as nested graphs. They are
flattened into one list in which every tensor has a number. Two graphs compute the same if their lists are equal.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import config as fx_config
from torch.utils import _pytree as pytree

from .black_box import Boxes, boxed, reason_of

Forward = Callable[[nn.Module, Tensor], Iterable[Tensor]]


class TraceError(RuntimeError):
    """The network cannot be traced."""


@dataclass(frozen=True)
class Ref:
    """A tensor of a graph: its number in order of creation, shape and type. The shape does not enter comparisons."""

    number: int
    shape: tuple[int, ...] = field(compare=False)
    dtype: torch.dtype


@dataclass(frozen=True)
class Step:
    """A call of an operator, or the settings of a region that begins.

    Attributes:
        name: Name of the operator, without the underscore of in-place ones.
        target: The operator itself.
        module: Name of the module whose code calls it.
        args: Its positional arguments, with a ``Ref`` for every tensor.
        kwargs: Its keyword arguments.
        results: Its results, nested as it returns them.
    """

    name: str
    target: Any
    module: str
    args: tuple
    kwargs: dict[str, Any]
    results: Any

    @property
    def refs(self) -> list[Ref]:
        """The tensors that it returns."""
        return [leaf for leaf in pytree.tree_leaves(self.results) if isinstance(leaf, Ref)]

    @property
    def reads(self) -> list[Ref]:
        """The tensors that it reads."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Ref)]

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments, by name."""
        schema = getattr(self.target, "_schema", None)
        names = [argument.name for argument in schema.arguments] if schema else map(str, range(len(self.args)))
        return dict(zip(names, self.args, strict=False)) | self.kwargs


@dataclass
class Graph:
    """An exported graph.

    Attributes:
        sources: Input tensors with the names of parameters and buffers, or None for the image and for constants.
        constants: Values of the constants.
        steps: The operators in order.
        outputs: The tensors that the network returns, and those that it writes into buffers.
    """

    sources: list[tuple[str | None, Ref]] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    outputs: list[Ref] = field(default_factory=list)


def export(model: nn.Module, forward: Forward, image: Tensor, boxes: Boxes) -> Graph:
    """Exports a network's forward pass in evaluation mode, without the inside of black boxes.

    Raises:
        TraceError: If ``torch.export`` cannot trace the network.
    """

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return tuple(forward(self.model, image))

    with evaluating(model), restored_attributes(model), boxed(boxes), without_stack_traces(), torch.no_grad():
        try:
            program = torch.export.export(Call(), (image,), strict=False)
        except Exception as error:
            raise TraceError(f"torch.export cannot trace {type(model).__name__}: {reason_of(error)}") from error
    return _Unroller().unroll(program)


class _Unroller:
    """Flattens a graph and the graphs of its regions into one list."""

    def __init__(self) -> None:
        self.graph, self.count = Graph(), 0

    def unroll(self, program: torch.export.ExportedProgram) -> Graph:
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        inputs = []
        for node in program.graph.nodes:
            if node.op == "placeholder":
                name = names.get(node.name)
                inputs.append(self.source(None if name is None else name.removeprefix("model."), node.meta.get("val")))
                if node.name in constants:
                    self.graph.constants.append(program.constants[constants[node.name]])
        results = self.region(program.graph_module, inputs)
        self.graph.outputs = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Ref)]
        return self.graph

    def source(self, name: str | None, value: Any) -> Any:
        ref = self.number(value)
        if isinstance(ref, Ref):
            self.graph.sources.append((name, ref))
        return ref

    def number(self, value: Any) -> Any:
        """Replaces a tensor by the next ``Ref``."""
        if not isinstance(value, Tensor):
            return value
        self.count += 1
        return Ref(self.count - 1, tuple(value.shape), value.dtype)

    def region(self, module: fx.GraphModule, inputs: list[Any]) -> Any:
        values: dict[fx.Node, Any] = {}
        remaining = iter(inputs)

        def look_up(argument: Any) -> Any:
            return fx.map_arg(argument, lambda node: values[node])

        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(remaining)
            elif node.op == "get_attr":
                attribute = operator.attrgetter(node.target)(module)
                values[node] = self.source(None, attribute)
                if isinstance(attribute, Tensor):
                    self.graph.constants.append(attribute)
            elif node.op == "output":
                return look_up(node.args[0])
            elif node.target is operator.getitem:
                values[node] = look_up(node.args[0])[node.args[1]]
            elif _name(node) != "_assert_tensor_metadata":  # an assertion on dtypes, which computes nothing
                args, kwargs = look_up(node.args), look_up(node.kwargs)
                inside = next((arg for arg in args if isinstance(arg, fx.GraphModule)), None)
                if inside is None:
                    values[node] = fx.node.map_aggregate(node.meta.get("val"), self.number)
                    self.step(node, args, kwargs, values[node])
                else:  # (settings..., graph, *inputs)
                    at = args.index(inside)
                    self.step(node, args[:at], kwargs, None)
                    values[node] = self.region(inside, args[at + 1 :])
        raise AssertionError("a graph ends in its output")

    def step(self, node: fx.Node, args: tuple, kwargs: dict[str, Any], results: Any) -> None:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        module = stack[-1][0].removeprefix("model.").removeprefix("model") if stack else ""
        self.graph.steps.append(Step(_name(node), node.target, module, tuple(args), dict(kwargs), results))


def _name(node: fx.Node) -> str:
    """The operator's name without its overload; that of an operator outside of PyTorch has its namespace."""
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    name = name if name.startswith("__") else name.rstrip("_")
    namespace = getattr(node.target, "namespace", "aten")
    return name if namespace == "aten" else f"{namespace}::{name}"


@contextlib.contextmanager
def evaluating(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Switches to evaluation (or training) mode inside of a ``with`` block, and restores the mode of each module."""
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
def without_stack_traces() -> Iterator[None]:
    """Has ``torch.export`` record no stack traces, which nothing reads; older releases of PyTorch always do."""
    before = getattr(fx_config, "do_not_emit_stack_traces", False)
    fx_config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx_config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def restored_attributes(model: nn.Module) -> Iterator[None]:
    """Restores all attributes of modules after a ``with`` block.

    In a forward pass on fake tensors, modules may cache those, or record that they are initialised.
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
