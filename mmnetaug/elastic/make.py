"""Makes a plain network width-elastic, in place."""

from __future__ import annotations

import collections
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .dry_run import hold_what_differs
from .graph.export import Forward
from .graph.reader import trace
from .groups import find_groups
from .layers import grow
from .plan import Plan
from .space import ElasticSpace, fill_new_channels


def make_elastic(
    model: nn.Module,
    forward: Forward,
    image_shape: tuple[int, int, int],
    width: Sequence[float],
    expand: Sequence[float],
    scope: str = "",
    roles: Mapping[str, str] | None = None,
) -> ElasticSpace:
    """Makes a network elastic in place; at base widths it computes exactly what it did before.

    Channels that the trace cannot follow stay at base width; ``held_reason`` of their group says why.

    Args:
        model: A plain network with its parameters.
        forward: Calls the network on an image batch and returns all its output tensors.
        image_shape: (C, H, W) of the images to trace with; any size that the network accepts.
        width: Width factors, starting with 1 (NetAug's width multiplier augmentation).
        expand: Expand factors, starting with 1.
        scope: Name of the submodule whose channels are widened, for example "backbone". Other layers only read widened
            features. "" widens the whole network except for its outputs.
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
    image = torch.zeros(2, *image_shape)  # with one image, channels folded into the batch would look like channels
    found = trace(model, forward, image)
    owners = collections.Counter(id(p) for module in model.modules() for p in module._parameters.values())
    for name, dims in found.parameters.items():
        if owners[id(operator.attrgetter(name)(model))] > 1:
            for layout in dims.values():
                found.channels.hold(layout, f"{name} is shared between modules")
    groups, group_of_run = find_groups(model, found, scope, width, expand, roles or {})
    space = ElasticSpace(groups)
    plan = Plan(model, found, group_of_run)
    hold_what_differs(model, forward, image, space, plan)
    while narrow := [group for group in groups if not group.held_reason and len(group.widths) == 1]:
        for group in narrow:  # groups that follow it may then have no other width either
            group.held_reason = "has no other width at these factors"
    layers = plan.swap_layers()
    for layer in layers:
        grow(layer)
    fill_new_channels(model)
    model.elastic = space
    return space
