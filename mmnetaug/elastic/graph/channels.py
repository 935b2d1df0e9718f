"""Runs of channels: which channels of which tensors must always have the same width.

A *run* is a range of neighbouring channels that is widened as a unit. The channels of a tensor are a sequence of runs:
one after a convolution, several after a concatenation. ``Channels`` is a union-find over runs that can also split them:
joining ``[16]`` with ``[8, 8]`` splits the first, wherever else it appears.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Layout = tuple[int, ...]
"""The channels of one tensor dimension: run numbers in order."""


class ChannelsDiffer(ValueError):
    """Two layouts that must be the same have different numbers of channels."""


class Channels:
    """A table of runs. Layouts stay valid when runs are joined or split: ``resolve`` gives the current runs."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._step: list[int] = []  # widths of a run are multiples of this
        self._held: list[str | None] = []  # why a run must stay at base width
        self._parts: dict[int, Layout] = {}  # the two parts of a run that was split
        self._ties: list[tuple[Layout, Layout]] = []

    def new(self, size: int) -> Layout:
        """Opens a run of ``size`` channels."""
        self._parent.append(len(self._parent))
        self._size.append(size)
        self._step.append(1)
        self._held.append(None)
        return (len(self._parent) - 1,)

    def resolve(self, layout: Layout) -> Layout:
        """The runs that a layout consists of, after all joins and splits."""
        runs: list[int] = []
        for run in layout:
            run = _find(self._parent, run)
            runs.extend(self.resolve(self._parts[run]) if run in self._parts else (run,))
        return tuple(runs)

    def size(self, layout: Layout) -> int:
        """Number of channels at base width."""
        return sum(self._size[run] for run in self.resolve(layout))

    def step(self, run: int) -> int:
        """Widths of the run are multiples of this."""
        return self._step[run]

    def held(self, run: int) -> str | None:
        """Why the run stays at base width, or None."""
        return self._held[run]

    def join(self, a: Layout, b: Layout) -> None:
        """Makes two layouts the same channels (the operands of a residual sum, a norm and its input, ...).

        Raises:
            ChannelsDiffer: If their numbers of channels differ.
        """
        if self.size(a) != self.size(b):
            raise ChannelsDiffer(f"{self.size(a)} channels meet {self.size(b)}")
        self._align(a, b, self._union)

    def _align(self, a: Layout, b: Layout, act: Callable[[int, int], None]) -> None:
        """Splits both layouts at each other's boundaries, then calls ``act`` on every pair of aligned runs."""
        left, right = self.resolve(a), self.resolve(b)
        while left:
            x, y = left[0], right[0]
            common = min(self._size[x], self._size[y])
            if self._size[x] > common:
                self._cut(x, common)
            elif self._size[y] > common:
                self._cut(y, common)
            else:
                act(x, y)
                left, right = left[1:], right[1:]
            # A split or union may affect the remaining runs: a run can appear several times.
            left, right = self.resolve(left), self.resolve(right)

    def part(self, layout: Layout, start: int, stop: int) -> Layout:
        """The layout of channels ``start`` to ``stop``; splits runs at these positions."""
        for position in (start, stop):
            offset = 0
            for run in self.resolve(layout):
                if offset < position < offset + self._size[run]:
                    self._cut(run, position - offset)
                    break
                offset += self._size[run]
        picked, offset = [], 0
        for run in self.resolve(layout):
            if start <= offset < stop:
                picked.append(run)
            offset += self._size[run]
        return tuple(picked)

    def tie(self, a: Layout, b: Layout) -> None:
        """Makes two layouts equally wide without being the same channels (the halves of a ``chunk``).

        Raises:
            ChannelsDiffer: If their numbers of channels differ.
        """
        if self.size(a) != self.size(b):
            raise ChannelsDiffer(f"{self.size(a)} channels are to be as wide as {self.size(b)}")
        self._ties.append((a, b))

    def require_multiple(self, layout: Layout, step: int) -> None:
        """Restricts the widths of every run to multiples of ``step`` (grouped convolution, group norm)."""
        for run in self.resolve(layout):
            self._step[run] = math.lcm(self._step[run], step)
            if self._size[run] % self._step[run]:
                self.hold((run,), f"its {self._size[run]} channels do not divide into groups of {self._step[run]}")

    def hold(self, layout: Layout, reason: str) -> None:
        """Keeps every run of the layout at base width; the first reason counts."""
        for run in self.resolve(layout):
            self._held[run] = self._held[run] or reason

    def variables(self) -> list[list[int]]:
        """Groups the runs by width variable: runs in one list always have the same number of channels."""
        runs = -1
        while runs != len(self._parent):  # a split may add boundaries to layouts that are aligned already
            runs = len(self._parent)
            for a, b in self._ties:
                self._align(a, b, lambda x, y: None)
        parent = list(range(runs))
        for a, b in self._ties:
            for x, y in zip(self.resolve(a), self.resolve(b), strict=True):
                parent[_find(parent, y)] = _find(parent, x)
        variables: dict[int, list[int]] = {}
        for run in range(len(self._parent)):
            if self._parent[run] == run and run not in self._parts:
                variables.setdefault(_find(parent, run), []).append(run)
        return list(variables.values())

    def _union(self, x: int, y: int) -> None:
        if x == y:
            return
        self._parent[y] = x
        self._held[x] = self._held[x] or self._held[y]
        self.require_multiple((x,), self._step[y])

    def _cut(self, run: int, at: int) -> None:
        self._parts[run] = self.new(at) + self.new(self._size[run] - at)
        for part in self._parts[run]:
            self._held[part] = self._held[run]
            self.require_multiple((part,), self._step[run])


def _find(parent: list[int], item: int) -> int:
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item
