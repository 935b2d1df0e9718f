"""Makes a plain network width-elastic, in place."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .groups import ChannelGroup, find_groups
from .layers import Axis, Elastic, grow, make_layer_elastic
from .space import ElasticSpace, fill_new_channels
from .trace import Trace, trace

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
        image_shape: (3, H, W) of the images to trace with; any size the network accepts will do.
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
    found = trace(model, forward, image)
    owners = collections.Counter(id(p) for module in model.modules() for p in module._parameters.values())
    for name, dims in found.parameters.items():
        if owners[id(_attribute(model, name))] > 1:
            for layout in dims.values():
                found.channels.hold(layout, f"{name} is shared between modules")
    groups, of_run = find_groups(model, found, scope, width, expand, roles or {})
    space = ElasticSpace(groups)
    layers = _swap_layers(model, found, of_run)
    _hold_what_fails(model, forward, image, found.outputs, space, layers)
    for layer in layers:
        grow(layer)
    fill_new_channels(model)
    model.elastic = space
    return space


def _attribute(model: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def _swap_layers(model: nn.Module, found: Trace, of_run: dict[int, ChannelGroup]) -> list[Elastic]:
    """Turns every module elastic that owns a parameter along channels which can be widened."""
    resolve = found.channels.resolve

    def runs(layout: tuple[int, ...]) -> tuple[ChannelGroup, ...]:
        return tuple(of_run[run] for run in resolve(layout))

    axes: dict[str, dict[str, tuple[Axis, ...]]] = {}
    for parameter, dims in found.parameters.items():
        owner, _, name = parameter.rpartition(".")
        elastic = tuple(
            Axis(dim, runs(layout))
            for dim, layout in dims.items()
            if any(not group.held_reason for group in runs(layout))
        )
        if elastic:
            axes.setdefault(owner, {})[name] = elastic
    counts: dict[str, dict[str, tuple[Axis, int]]] = {}
    for owner, name, layout, base in found.integers:
        if owner in axes:
            counts.setdefault(owner, {})[name] = (Axis(0, runs(layout)), base)
    layers = []
    for owner, of_owner in axes.items():
        layer = model.get_submodule(owner)
        make_layer_elastic(layer, of_owner, counts.get(owner, {}))
        layers.append(layer)
    return layers


def _hold_what_fails(
    model: nn.Module,
    forward: Forward,
    image: Tensor,
    expected: list[tuple[int, ...]],
    space: ElasticSpace,
    layers: list[Elastic],
) -> None:
    """Tries wider networks on fake tensors and holds the groups with which the network's own code fails.

    A forward pass that writes channel numbers down (``x.split((32, 32))``) shows nothing of it in the graph.
    """

    def problem() -> str | None:
        try:
            outputs = _fake_outputs(model, forward, image, layers)
        except Exception as error:
            return f"the network's code fails at another width: {str(error).splitlines()[0]}"
        return None if outputs == expected else "the network's output changes shape at another width"

    with space.at(space.largest()):
        failed = problem()
    if failed is None:
        return
    for group in space.groups:
        with space.at([g.max_width if g is group else g.base_width for g in space.groups]):
            reason = problem()
        group.held_reason = group.held_reason or reason
    with space.at(space.largest()):
        failed = problem()
    for group in space.groups:
        group.held_reason = group.held_reason or failed


def _fake_outputs(model: nn.Module, forward: Forward, image: Tensor, layers: list[Elastic]) -> list[tuple[int, ...]]:
    """Shapes of the outputs at the widths in use, without computing anything."""
    names = {id(module): name for name, module in model.named_modules()}

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> list[Tensor]:
            return list(forward(self.model, image))

    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            fakes = {}
            for layer in layers:
                for name, axes in layer.elastic_axes.items():
                    shape = list(layer.stored(name).shape)
                    for axis in axes:
                        shape[axis.dim] = axis.stored
                    fakes[f"model.{names[id(layer)]}.{name}"] = torch.empty(shape, dtype=layer.stored(name).dtype)
            outputs = torch.func.functional_call(Call(), fakes, (torch.empty(image.shape),))
    finally:
        for module, training in modes.items():
            module.training = training
    return [tuple(output.shape) for output in outputs]
