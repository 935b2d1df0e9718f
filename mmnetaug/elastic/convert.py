"""Makes a plain network width-elastic, in place."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .black_box import boxed, without_values
from .channels import Layout
from .groups import ChannelGroup, find_groups
from .layers import Axis, Count, Elastic, count_at_width, grow, make_layer_elastic
from .space import ElasticSpace, fill_new_channels
from .trace import Trace, evaluating, export, first_line, shapes, trace, untouched

Forward = Callable[[nn.Module, Tensor], Iterable[Tensor]]


def make_elastic(
    model: nn.Module,
    forward: Forward,
    image_shape: tuple[int, int, int],
    width: Sequence[float],
    expand: Sequence[float],
    scope: str = "",
    roles: Mapping[str, str] | None = None,
) -> ElasticSpace:
    """Makes a network elastic in place; at base widths it goes on computing exactly what it did.

    Channels whose handling the trace does not understand stay at base width, with the reason in the group.

    Args:
        model: A plain network with its parameters.
        forward: Calls the network on an image batch and returns all its output tensors.
        image_shape: (C, H, W) of the images to trace with; any size the network accepts will do.
        width: Width factors, starting with 1 (NetAug's width multiplier augmentation).
        expand: Expand factors, starting with 1.
        scope: Name of the submodule whose channels are widened, "backbone" for instance. Layers elsewhere only learn
            to read widened features. "" widens the whole network but for its outputs.
        roles: Overrides of roles by group name pattern, see ``find_groups``.

    Returns:
        The space of widths, also attached as ``model.elastic``.

    Raises:
        ValueError: If factors do not start at 1 or are below 1, or an override is wrong.
        TraceError: If the network cannot be traced.
    """
    for name, factors in (("width", width), ("expand", expand)):
        if not factors or factors[0] != 1 or min(factors) < 1:
            raise ValueError(f"{name} factors start with 1 (the tiny network) and are at least 1, got {list(factors)}")
    image = torch.zeros(2, *image_shape)  # two images, so that a fold of batch and channels cannot pass for channels
    with untouched(model):
        found = trace(model, forward, image)
    owners = collections.Counter(id(p) for module in model.modules() for p in module._parameters.values())
    for name, dims in found.parameters.items():
        if owners[id(_attribute(model, name))] > 1:
            for layout in dims.values():
                found.channels.hold(layout, f"{name} is shared between modules")
    groups, of_run = find_groups(model, found, scope, width, expand, roles or {})
    space = ElasticSpace(groups)
    plan = _Plan(model, found, of_run)
    with untouched(model):
        _hold_what_fails(model, forward, image, space, plan)
    while narrow := [group for group in groups if not group.held_reason and len(group.widths) == 1]:
        for group in narrow:  # which may leave those that follow it no other width either
            group.held_reason = "has no other width at these factors"
    layers = plan.swap_layers()
    for layer in layers:
        grow(layer)
    fill_new_channels(model)
    model.elastic = space
    return space


def _attribute(model: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


class _Plan:
    """Which parameters and counts of a plain network depend on the widths, and how."""

    def __init__(self, model: nn.Module, found: Trace, of_run: dict[int, ChannelGroup]) -> None:
        self.model, self.found, self.of_run = model, found, of_run

    def runs(self, layout: Layout) -> tuple[ChannelGroup, ...]:
        return tuple(self.of_run[run] for run in self.found.channels.resolve(layout))

    def parameters(self) -> Iterator[tuple[str, str, tuple[Axis, ...]]]:
        """Module, name and elastic dimensions of every parameter and buffer along channels that can be widened."""
        for parameter, dims in self.found.parameters.items():
            axes = tuple(
                Axis(dim, runs)
                for dim, runs in ((dim, self.runs(layout)) for dim, layout in dims.items())
                if any(not group.held_reason for group in runs)
            )
            if axes:
                owner, _, name = parameter.rpartition(".")
                yield owner, name, axes

    def counts(self) -> Iterator[tuple[str, str, Axis, Count]]:
        """Module and name of every attribute that counts channels that can be widened."""
        for owner, name, layout, base in self.found.integers:
            axis = Axis(0, self.runs(layout))
            if any(not group.held_reason for group in axis.runs):
                yield owner, name, axis, base

    def swap_layers(self) -> list[Elastic]:
        """Turns every module elastic whose parameters or counts depend on the widths."""
        axes: dict[str, dict[str, tuple[Axis, ...]]] = {}
        counts: dict[str, dict[str, tuple[Axis, Count]]] = {}
        for owner, name, of_parameter in self.parameters():
            axes.setdefault(owner, {})[name] = of_parameter
        for owner, name, axis, base in self.counts():
            counts.setdefault(owner, {})[name] = (axis, base)
        layers = []
        for owner in dict.fromkeys([*axes, *counts]):
            layer = self.model.get_submodule(owner)
            names = {name: f"{owner}.{name}" if owner else name for name in axes.get(owner, {})}
            reads = {name: self.found.reads[key] for name, key in names.items() if key in self.found.reads}
            make_layer_elastic(layer, axes.get(owner, {}), counts.get(owner, {}), reads)
            layers.append(layer)
        return layers

    @contextlib.contextmanager
    def at_width(self) -> Iterator[None]:
        """The plain network at the widths in use, its additional channels uninitialised, for shapes to be looked at."""
        before: list[tuple[dict[str, Any], str, Any]] = []

        def put(place: dict[str, Any], name: str, value: Any) -> None:
            before.append((place, name, place[name]))
            place[name] = value

        try:
            for owner, name, axes in self.parameters():
                module = self.model.get_submodule(owner)
                place = module._parameters if name in module._parameters else module._buffers
                shape = list(place[name].shape)
                for axis in axes:
                    shape[axis.dim] = axis.width
                wide = place[name].new_empty(shape)
                put(place, name, nn.Parameter(wide, False) if isinstance(place[name], nn.Parameter) else wide)
            for module in self.model.modules():  # a forward pass in training may write into them
                for name, buffer in module._buffers.items():
                    put(module._buffers, name, None if buffer is None else buffer.clone())
            for owner, name, axis, base in self.counts():
                put(vars(self.model.get_submodule(owner)), name, count_at_width(axis, base))
            yield
        finally:
            for place, name, value in reversed(before):
                place[name] = value

    def disagreement(self, forward: Forward, image: Tensor) -> tuple[str, set[ChannelGroup]] | None:
        """Compares every operator of the graph at the widths in use with what the trace expects of it.

        Returns:
            What is wrong and the groups along the first result whose shape is another; None if all agree.
        """
        with self.at_width():
            graph = export(self.model, forward, image, self.found.boxes).graph_module
        for (name, expected), (got, wide) in zip(self.found.steps, shapes(graph), strict=False):
            if name != got:
                return f"the network's code runs another way at another width, from {name} on", set()
            at_width = [
                tuple(
                    sum(group.width for group in self.runs(value.dims[dim])) if dim in value.dims else size
                    for dim, size in enumerate(value.shape)
                )
                for value in expected
            ]
            if at_width != wide:
                groups = {group for value in expected for layout in value.dims.values() for group in self.runs(layout)}
                return f"the network's code divides them otherwise at another width ({name})", groups
        return None


def _hold_what_fails(model: nn.Module, forward: Forward, image: Tensor, space: ElasticSpace, plan: _Plan) -> None:
    """Tries wider networks without computing anything, and holds the groups with which the network's code fails.

    A forward pass that writes channel numbers down (``x.split((32, 32))``), or one that differs in training, shows
    nothing of it in the graph.
    """

    def at_largest(groups: list[ChannelGroup]) -> list[int]:
        return [group.max_width if group in groups else group.base_width for group in space.groups]

    def problem(groups: list[ChannelGroup]) -> str | None:
        """Why the network cannot run with these groups at their largest; runs it on shapes alone."""
        try:
            with (
                space.at(at_largest(groups)),
                plan.at_width(),
                evaluating(model, training),
                boxed(plan.found.boxes),
                without_values(),
            ):
                list(forward(model, torch.empty(image.shape)))
        except Exception as error:
            return f"the network's code fails at another width: {first_line(error)}"
        return None

    def free() -> list[ChannelGroup]:
        return [group for group in space.groups if len(group.widths) > 1]

    def probes() -> list[list[ChannelGroup]]:
        """All groups, and every other one: parts that must be equally wide and are not show in the second."""
        return [free(), free()[::2]] if plan.found.divided else [free()]

    def subsets() -> list[list[ChannelGroup]]:
        """All groups, and such parts of them that of any two groups one is wide alone in some part."""
        bits = range(len(space.groups).bit_length()) if plan.found.divided else ()
        return [free(), *([group for i, group in enumerate(free()) if i >> bit & 1] for bit in bits)]

    def hold_within(groups: list[ChannelGroup]) -> None:
        """Finds the groups that fail by halving."""
        reason = problem(groups)
        if reason is None:
            return
        if len(groups) == 1:
            groups[0].held_reason = reason
            return
        hold_within(groups[: len(groups) // 2])
        hold_within(groups[len(groups) // 2 :])

    training = True  # the only mode in which wider networks run, unless it needs values already at base widths
    if any(problem(groups) for groups in subsets()):
        training = problem([]) is None
        failing = True
        while failing:
            failing = False
            for groups in filter(None, subsets()):
                if (reason := problem(groups)) is None:
                    continue
                failing = True
                hold_within(groups)
                if all(len(group.widths) > 1 for group in groups):  # they fail together, and none of them alone
                    for group in groups:
                        group.held_reason = reason
    while plan.found.divided and free():
        for groups in probes():
            with space.at(at_largest(groups)):
                wrong = plan.disagreement(forward, image)
            if wrong is not None:
                break
        else:
            return
        reason, concerned = wrong
        for group in concerned.intersection(free()) or free():
            group.held_reason = reason
