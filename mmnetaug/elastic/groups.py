"""Channel groups: the width variables of an elastic network, their roles and the widths they can take.

Roles follow NetAug (paper section 3.2 and the authors' networks). *width* groups run between blocks (stem, stages,
last convolution) and take a width factor. *expand* groups are hidden inside a block and take an expand factor times the
width factor of the block's input. *squeeze* groups (squeeze-and-excitation) follow the group that they gate.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from .graph.structure import Producer, Trace

Role = Literal["width", "expand", "squeeze"]
FACTORS_OF_BASE = (1.0,)
UNREAD = "read by no convolution or linear layer"
"""Why channels that only leave the network, or go nowhere, stay at base width."""


@dataclass(eq=False)
class ChannelGroup:
    """Channels that share a width.

    Attributes:
        name: Name of the first module that outputs the channels.
        role: Which factors determine the width.
        base_width: Width in the tiny network.
        step: Widths are multiples of this (group size of a grouped operation, otherwise 1 as in the authors' code).
        factors: The group's own factors, starting with 1.
        follows: The group whose width factor (role expand) or whole factor (role squeeze) multiplies the own factor.
        held_reason: Why the group stays at its base width; None when it is augmented.
        width: The current width.
    """

    name: str
    role: Role
    base_width: int
    step: int = 1
    factors: tuple[float, ...] = FACTORS_OF_BASE
    follows: ChannelGroup | None = None
    held_reason: str | None = None
    width: int = field(init=False)

    def __post_init__(self) -> None:
        self.width = self.base_width

    def __str__(self) -> str:
        widths = f"held at {self.base_width}: {self.held_reason}" if self.held_reason else self.widths
        return f"{self.name}: {self.role}, {widths}"

    def round(self, factor: float) -> int:
        """The width at a factor, a multiple of ``step`` (the base width of a held group may be none)."""
        return self.base_width if factor == 1 else self.step * max(1, round(self.base_width * factor / self.step))

    def depends_on(self, other: ChannelGroup) -> bool:
        """Whether the width follows that of another group, directly or not, or the groups are the same."""
        return self is other or (self.follows is not None and self.follows.depends_on(other))

    def multiplied(self) -> tuple[ChannelGroup, ...]:
        """The groups whose own factors, multiplied, are the group's whole factor. Expand factors are not inherited."""
        if self.held_reason:
            return ()
        if self.role == "width" or self.follows is None:
            return (self,)
        return (self, *(self.follows.multiplied() if self.role == "squeeze" else self.follows._width_leader()))

    def _width_leader(self) -> tuple[ChannelGroup, ...]:
        if self.held_reason or self.role == "width":
            return self.multiplied()
        return self.follows._width_leader() if self.follows else ()

    @property
    def widths(self) -> list[int]:
        """All widths that the group can take, ascending."""
        choices = itertools.product(*(group.factors for group in self.multiplied()))
        return sorted({self.round(math.prod(factors)) for factors in choices})

    @property
    def max_width(self) -> int:
        return self.widths[-1]


def find_groups(
    model: nn.Module,
    found: Trace,
    scope: str,
    width: Sequence[float],
    expand: Sequence[float],
    roles: Mapping[str, str],
) -> tuple[list[ChannelGroup], dict[int, ChannelGroup]]:
    """Groups the runs of a trace.

    Args:
        model: The traced network.
        found: Its trace.
        scope: Name of the submodule whose channels may be widened ("" for all of ``model``).
        width: Width factors.
        expand: Expand factors.
        roles: Overrides: patterns (``fnmatch``) of group names to "width", "expand" or "base".

    Returns:
        The groups produced inside of ``scope``, in graph order, and the group of every run, including those produced
        elsewhere, which are held.

    Raises:
        ValueError: If an override matches no group or names no role.
    """
    channels = found.channels
    makers: dict[int, list[int]] = {}
    users: dict[int, list[str]] = {}
    for number, producer in enumerate(found.producers):
        for run in channels.resolve(producer.output):
            makers.setdefault(run, []).append(number)
    for module, layout in found.uses:
        for run in channels.resolve(layout):
            users.setdefault(run, []).append(module)
    gated = {run for layout in found.gated for run in channels.resolve(layout)}
    read = {run for producer in found.producers for run in channels.resolve(producer.input or ())}

    group_of_run: dict[int, ChannelGroup] = {}
    listed: list[tuple[int, ChannelGroup]] = []
    for runs in channels.variables():
        made_by = sorted(number for run in runs for number in makers.get(run, []))
        base = channels.size((runs[0],))
        step = math.lcm(*(channels.step(run) for run in runs))
        held = next((reason for run in runs if (reason := channels.held(run))), None)
        if base % step:
            held = held or f"{base} channels do not divide into groups of {step}"
        if not made_by:  # dimensions of parameters that are not channels, or that read fixed features
            group = ChannelGroup("", "width", base, held_reason="made by no convolution or linear layer")
            group_of_run.update(dict.fromkeys(runs, group))
            continue
        producers = [found.producers[number] for number in made_by]
        outside = [producer.module for producer in producers if not _inside(producer.module, scope)]
        if read.isdisjoint(runs):
            held = held or UNREAD
        if outside:
            held = f"made by {outside[0]}, outside of {scope}"
        group = ChannelGroup(producers[0].module, "width", base, step, held_reason=held)
        group_of_run.update(dict.fromkeys(runs, group))
        if len(outside) < len(producers):
            modules = [module for run in runs for module in users.get(run, [])]
            group.role = _role(model, scope, modules)
            listed.append((made_by[0], group))

    listed.sort(key=lambda entry: entry[0])
    for number, group in listed:
        producer = found.producers[number]
        gate = _gated_by(group, producer, found, group_of_run, gated)
        override = next((role for pattern, role in roles.items() if fnmatch.fnmatch(group.name, pattern)), None)
        if gate is not None and override is None and not gate.depends_on(group):
            group.role, group.follows = "squeeze", gate
            continue
        if override == "base":
            group.held_reason = group.held_reason or "by the config"
        elif override in ("width", "expand"):
            group.role = "width" if override == "width" else "expand"
        elif override is not None:
            raise ValueError(f"roles: {override!r} is none of 'width', 'expand', 'base'")
        group.factors = tuple(width if group.role == "width" else expand)
        if group.role == "expand" and producer.input is not None:
            leader = group_of_run[channels.resolve(producer.input)[0]]
            group.follows = leader if not leader.depends_on(group) else None
    groups = [group for _, group in listed]
    for pattern in roles:
        if not any(fnmatch.fnmatch(group.name, pattern) for group in groups):
            raise ValueError(f"roles: {pattern!r} matches none of the groups {[group.name for group in groups]}")
    return groups, group_of_run


def _inside(module: str, scope: str) -> bool:
    return not scope or module == scope or module.startswith(f"{scope}.")


def _role(model: nn.Module, scope: str, modules: list[str]) -> Role:
    """*expand* if all modules that produce or read the channels are in one block, otherwise *width*.

    The block is the smallest module around them that is not a plain container.
    """
    levels = zip(*(module.split(".") for module in modules), strict=False)
    path = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, levels)]
    if ".".join(path) in modules:
        path = path[:-1]
    while path and isinstance(model.get_submodule(".".join(path)), nn.Sequential | nn.ModuleList | nn.ModuleDict):
        path = path[:-1]
    block = ".".join(path)
    return "expand" if block != scope and _inside(block, scope) else "width"


def _gated_by(
    group: ChannelGroup, producer: Producer, found: Trace, group_of_run: dict[int, ChannelGroup], gated: set[int]
) -> ChannelGroup | None:
    """The group that a squeeze-and-excitation bottleneck gates, or None if the group is not such a bottleneck."""
    if not producer.pooled:
        return None
    resolve = found.channels.resolve
    read_by = [
        other
        for other in found.producers
        if other.input and group in [group_of_run[run] for run in resolve(other.input)]
    ]
    results = {run for other in read_by for run in resolve(other.output)}
    if not results or not results <= gated:
        return None
    return group_of_run[min(results)]
