"""Runs wider networks before anything is widened, and holds the channels whose widening changes the computation.

The graph of the tiny network does not show everything. A forward pass may contain literal channel numbers
(``x.split((32, 32))``), compute with them (``x / x.shape[1]``), branch on them, or differ in training. Wider networks
are therefore run in training mode on fake tensors, and exported in evaluation mode. They must call the same operators
on the same tensors with the same arguments, and every shape must be the one that the trace predicts.
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .graph.black_box import boxed, reason_of, without_values
from .graph.export import Forward, Ref, Step, TraceError, evaluating, export, restored_attributes
from .graph.structure import Value
from .groups import ChannelGroup
from .layers import Axis, count_at_width
from .plan import Plan
from .space import ElasticSpace

aten = torch.ops.aten

Widths = dict[ChannelGroup, int]
"""Widths of the groups that are wider than in the tiny network."""

Check = Callable[[Widths], tuple[str, set[ChannelGroup]] | None]
"""Returns the reason of a difference and the groups that cause it, if known; None without a difference."""

EXPORTS = 2
"""Number of widths at which graphs are compared, the slowest part: the largest ones and one mixed sample."""


def hold_what_differs(model: nn.Module, forward: Forward, image: Tensor, space: ElasticSpace, plan: Plan) -> None:
    """Holds groups at base width until all wider networks that are run agree with the trace."""
    runs, held = _Runs(model, forward, image, space, plan), True
    while held:
        samples = list(_samples(space))
        checks = [(runs.run_difference, widths) for widths in samples]
        checks += [(runs.graph_difference, widths) for widths in samples[:EXPORTS]]
        held = any(runs.hold_what_differs(check, widths) for check, widths in checks)


def _samples(space: ElasticSpace) -> Iterator[Widths]:
    """The largest widths, then mixed ones until any two groups of equal base width have differed in one of them.

    This reveals parts that must be equally wide and are not.
    """
    free = [group for group in space.groups if len(group.widths) > 1]
    if not free:
        return
    yield {group: group.max_width for group in free}
    generator = random.Random(0)
    seen: dict[ChannelGroup, tuple[int, ...]] = {group: (group.base_width,) for group in free}
    for number in itertools.count():
        if number and len(set(seen.values())) == len(free):
            return
        taken: collections.Counter = collections.Counter()
        for group in free:
            widths = generator.sample(group.widths, len(group.widths))
            width = min(widths, key=lambda width: taken[seen[group], width])
            taken[seen[group], width] += 1
            seen[group] += (width,)
        yield {group: widths[-1] for group, widths in seen.items() if widths[-1] != group.base_width}


class _Runs:
    """Runs the network at other widths."""

    def __init__(self, model: nn.Module, forward: Forward, image: Tensor, space: ElasticSpace, plan: Plan) -> None:
        self.model, self.forward, self.image, self.space, self.plan = model, forward, image, space, plan
        try:
            self.training = True
            self.expected = self.run({})
        except Exception as error:  # training mode needs values: use evaluation mode, in which the network was traced
            reason_of(error)
            self.training = False
            self.expected = self.run({})

    def hold_what_differs(self, check: Check, widths: Widths) -> bool:
        """Holds the groups with which the network differs from the trace; returns whether there are any."""
        if (found := check(widths)) is None:
            return False
        reason, groups = found
        for group in groups:
            group.held_reason = reason
        if not groups:
            self.hold_within(check, widths)
        if not any(group.held_reason for group in widths):  # they differ in combination only
            for group in widths:
                group.held_reason = reason
        return True

    def hold_within(self, check: Check, widths: Widths) -> None:
        """Finds the groups that cause a difference by bisection."""
        if (found := check(widths)) is None:
            return
        if len(widths) == 1:
            next(iter(widths)).held_reason = found[0]
            return
        items = list(widths.items())
        self.hold_within(check, dict(items[: len(items) // 2]))
        self.hold_within(check, dict(items[len(items) // 2 :]))

    def run(self, widths: Widths) -> list[tuple]:
        """Runs a wider network on fake tensors; returns its operators and their arguments independent of widths."""
        states = random.getstate(), np.random.get_state()
        random.seed(0), np.random.seed(0)  # networks may skip blocks at random
        try:
            with (
                self.space.at([widths.get(group, group.base_width) for group in self.space.groups]),
                self.plan.at_width(),
                evaluating(self.model, self.training),
                restored_attributes(self.model),
                boxed(self.plan.found.boxes),
                without_values(),
                _Operators() as operators,
            ):
                list(self.forward(self.model, torch.empty(self.image.shape)))
        finally:
            random.setstate(states[0]), np.random.set_state(states[1])
        return operators.ran

    def run_difference(self, widths: Widths) -> tuple[str, set[ChannelGroup]] | None:
        """Compares the operators of a wider network on fake tensors; the groups that cause a difference are unknown."""
        try:
            ran = self.run(widths)
        except Exception as error:
            return f"the network's code fails at another width: {reason_of(error)}", set()
        for ours, theirs in itertools.zip_longest(self.expected, ran, fillvalue=("the end",)):
            if ours != theirs:
                return f"the network's code runs other operators at another width, from {ours[0]} on", set()
        return None

    def graph_difference(self, widths: Widths) -> tuple[str, set[ChannelGroup]] | None:
        """Compares the graph of a wider network with the trace."""
        found = self.plan.found
        with self.space.at([widths.get(group, group.base_width) for group in self.space.groups]):
            try:
                with self.plan.at_width():
                    wide = export(self.model, self.forward, self.image, found.boxes)
            except TraceError as error:
                return f"the network's code fails at another width: {error}", set()
            pairs = zip(found.graph.constants, wide.constants, strict=False)
            if found.graph.sources != wide.sources or not all(torch.equal(ours, theirs) for ours, theirs in pairs):
                return "the network's code computes with other constants at another width", set()
            steps = itertools.zip_longest(found.graph.steps, wide.steps)
            for number, (ours, theirs) in enumerate(steps):
                if ours is None or theirs is None or ours.target != theirs.target:
                    name = ours.name if ours else "its end"
                    return f"the network's code runs other operators at another width, from {name} on", set()
                results = [found.values[ref] for ref in ours.refs]
                if [ref.shape for ref in theirs.refs] != [self.shape(value) for value in results]:
                    reason = f"the network's code splits channels differently at another width ({ours.name})"
                    return reason, self.groups(results) & widths.keys()
                if (other := self.other_argument(number, ours, theirs)) is not None:
                    where = f"{other} of {ours.name} in {ours.module or 'the network'}"
                    reason = f"the network's code passes other arguments at another width: {where}"
                    return reason, self.groups([*results, *(found.values[ref] for ref in ours.reads)]) & widths.keys()
            if found.graph.outputs != wide.outputs:
                return "the network returns other tensors at another width", set()
        return None

    def groups(self, values: Iterable[Value]) -> set[ChannelGroup]:
        """The groups along any dimension of the values."""
        return {group for value in values for layout in value.dims.values() for group in self.plan.runs(layout)}

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape that the trace predicts at the current widths."""
        return tuple(
            sum(group.width for group in self.plan.runs(value.dims[dim])) if dim in value.dims else size
            for dim, size in enumerate(value.shape)
        )

    def other_argument(self, number: int, ours: Step, theirs: Step) -> str | None:
        """Name of the first argument that differs from the trace's prediction, or None."""
        counts, got = self.plan.found.count_arguments[number], theirs.arguments
        for name, value in ours.arguments.items():
            wide = got.pop(name, None)
            if name in counts:  # the number, or the first numbers of a list
                expected = [count_at_width(Axis(0, self.plan.runs(layout)), base) for layout, base in counts[name]]
                value = [*expected, *value[len(expected) :]] if isinstance(value, list) else expected[0]
            if wide != value and not (name in _SIZES and _is_size(value, ours) and _is_size(wide, theirs)):
                return name
        return next(iter(got), None if ours.results == theirs.results else "the type")


_SIZES = ("size", "sizes", "shape")


def _is_size(value: Any, step: Step) -> bool:
    """Whether an argument is part of the shape of the result, as of ``view``; shapes are compared separately."""
    if not isinstance(value, list) or not isinstance(step.results, Ref):
        return False
    shape = step.results.shape
    parts = (shape[start : start + len(value)] for start in range(len(shape) - len(value) + 1))
    return any(all(size in (-1, at) for size, at in zip(value, part, strict=True)) for part in parts)


class _Operators(TorchDispatchMode):
    """Records operators, their numeric arguments (except integers that may count channels) and types of results."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[tuple] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if operator is aten.native_batch_norm.default and isinstance(args[3], Tensor):
            # On fake tensors a batch norm in training runs 30 operators, half of the time of a run. In evaluation its
            # results have the same shapes and types, and PyTorch keeps them for norms of equal shapes.
            results = aten._native_batch_norm_legit_no_training.default(*args[:5], *args[6:])
        else:
            results = operator(*args, **(kwargs or {}))
        kinds = (float, bool, str, int) if torch.Tag.pointwise in operator.tags else (float, bool, str)
        numbers = [repr(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, kinds)]
        dtypes = [leaf.dtype for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]
        self.ran.append((str(operator), numbers, dtypes))
        return results
