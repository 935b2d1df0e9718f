"""Runs of channels: which positions of which tensors must always share one width.

A *run* is a stretch of neighbouring channels that is widened as one; the channels of a tensor are a sequence of runs
(one behind a convolution, several behind a concatenation). ``Channels`` is a union-find over runs whose members can
also be cut: joining ``[16]`` with ``[8, 8]`` cuts the first, wherever else it appears.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Layout = tuple[int, ...]
"""The channels of one tensor dimension: run numbers in order."""


class ChannelsDiffer(ValueError):
    """Different numbers of channels are said to be the same."""


class Channels:
    """A table of runs. Layouts handed out stay valid: ``resolve`` tells what they have become."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._step: list[int] = []  # widths of a run are multiples of this
        self._held: list[str | None] = []  # why a run must stay at its base width
        self._parts: dict[int, Layout] = {}  # a run that was cut: its two parts
        self._ties: list[tuple[Layout, Layout]] = []

    def new(self, size: int) -> Layout:
        """Opens a run of ``size`` channels."""
        self._parent.append(len(self._parent))
        self._size.append(size)
        self._step.append(1)
        self._held.append(None)
        return (len(self._parent) - 1,)

    def resolve(self, layout: Layout) -> Layout:
        """The runs a layout consists of now, after all joins and cuts."""
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
        """Why the run stays at its base width, or None."""
        return self._held[run]

    def join(self, a: Layout, b: Layout) -> None:
        """The two layouts are the same channels from now on (a residual sum, a norm and its input, ...).

        Raises:
            ChannelsDiffer: If their numbers of channels differ.
        """
        if self.size(a) != self.size(b):
            raise ChannelsDiffer(f"{self.size(a)} channels meet {self.size(b)}")
        self._align(a, b, self._union)

    def _align(self, a: Layout, b: Layout, act: Callable[[int, int], None]) -> None:
        """Cuts both layouts at each other's borders, and acts on each pair of runs that lie at the same place."""
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
            # A cut or a union may concern what is still to come: a run can appear several times.
            left, right = self.resolve(left), self.resolve(right)

    def part(self, layout: Layout, start: int, stop: int) -> Layout:
        """The layout of channels ``start`` to ``stop``; a run that these fall inside is cut there."""
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
        """The two layouts are equally wide without being the same channels (the halves of a ``chunk``).

        Raises:
            ChannelsDiffer: If their numbers of channels differ.
        """
        if self.size(a) != self.size(b):
            raise ChannelsDiffer(f"{self.size(a)} channels are to be as wide as {self.size(b)}")
        self._ties.append((a, b))

    def require_multiple(self, layout: Layout, step: int) -> None:
        """Widths of every run must be multiples of ``step`` (grouped convolution, group norm)."""
        for run in self.resolve(layout):
            self._step[run] = math.lcm(self._step[run], step)
            if self._size[run] % self._step[run]:
                self.hold((run,), f"its {self._size[run]} channels do not divide into groups of {self._step[run]}")

    def hold(self, layout: Layout, reason: str) -> None:
        """Keeps every run of the layout at its base width; the first reason given is kept."""
        for run in self.resolve(layout):
            self._held[run] = self._held[run] or reason

    def variables(self) -> list[list[int]]:
        """The runs by width variable: runs listed together always have the same number of channels."""
        runs = -1
        while runs != len(self._parent):  # a cut may put new borders into layouts that were aligned before
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
