"""Lists the parameters and attributes of a plain network that depend on the widths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from .graph.channels import Layout
from .graph.structure import Trace
from .groups import ChannelGroup
from .layers import Axis, Count, Elastic, count_at_width, make_layer_elastic


class Plan:
    """The parameters, buffers and attributes of a plain network that depend on the widths, and how."""

    def __init__(self, model: nn.Module, found: Trace, group_of_run: dict[int, ChannelGroup]) -> None:
        self.model, self.found, self.group_of_run = model, found, group_of_run

    def runs(self, layout: Layout) -> tuple[ChannelGroup, ...]:
        return tuple(self.group_of_run[run] for run in self.found.channels.resolve(layout))

    def parameters(self) -> Iterator[tuple[str, str, tuple[Axis, ...]]]:
        """Yields module, name and elastic dimensions of all parameters and buffers whose channels can be widened."""
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
        """Yields every attribute that counts channels that can be widened: module, name, axis and base value."""
        for owner, name, layout, base in self.found.count_attributes:
            axis = Axis(0, self.runs(layout))
            if any(not group.held_reason for group in axis.runs):
                yield owner, name, axis, base

    def swap_layers(self) -> list[Elastic]:
        """Makes every module elastic whose parameters or attributes depend on the widths."""
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
            reads = {name: self.found.input_dims[key] for name, key in names.items() if key in self.found.input_dims}
            make_layer_elastic(layer, axes.get(owner, {}), counts.get(owner, {}), reads)
            layers.append(layer)
        return layers

    @contextlib.contextmanager
    def at_width(self) -> Iterator[None]:
        """Gives the plain network the shapes of the current widths; additional channels are uninitialised."""
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
