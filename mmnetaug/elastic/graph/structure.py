"""The channel structure of a network, which the reader finds, and the values that rules work on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.utils import _pytree as pytree

from .black_box import Boxes
from .channels import Channels, Layout
from .export import Graph, Ref


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        shape: Its shape at base widths.
        dims: Layouts of the dimensions that consist of channels; all others are fixed.
        parameter: Its name, if it is a parameter or buffer.
        pooled: Whether it was pooled over space, as the input of a squeeze-and-excitation gate is.
    """

    shape: tuple[int, ...]
    dims: dict[int, Layout] = field(default_factory=dict)
    parameter: str | None = None
    pooled: bool = False


@dataclass(frozen=True)
class Producer:
    """A convolution or linear layer that makes new channels.

    Attributes:
        module: Name of the module that owns the weight.
        output: Layout of its output.
        input: Layout of its input; None for the image and for fixed features.
        pooled: Whether it reads pooled features.
    """

    module: str
    output: Layout
    input: Layout | None
    pooled: bool


@dataclass
class Trace:
    """The channel structure of a network.

    Attributes:
        channels: The table of runs that all layouts refer to.
        parameters: Per parameter or buffer name, the layouts of its dimensions.
        producers: Convolutions and linear layers in graph order.
        input_dims: Per parameter that maps channels to others, its dimension of input channels.
        uses: Modules that own a convolution or linear weight, each with a layout that it reads or makes.
        count_attributes: Modules whose attribute counts channels: (module name, attribute, layout, base value).
        graph: The graph at base widths.
        values: Every tensor of the graph; they give the expected shapes at any widths.
        count_arguments: Per step of the graph, the arguments that count channels: by name, the layouts that they count
            and their base values, one per number of a list.
        boxes: Modules that cannot be traced.
        gated: Layouts that are multiplied by a gate computed from their own pooled features.
    """

    channels: Channels = field(default_factory=Channels)
    parameters: dict[str, dict[int, Layout]] = field(default_factory=dict)
    producers: list[Producer] = field(default_factory=list)
    input_dims: dict[str, int] = field(default_factory=dict)
    uses: list[tuple[str, Layout]] = field(default_factory=list)
    count_attributes: list[tuple[str, str, Layout, int | tuple[int, ...]]] = field(default_factory=list)
    graph: Graph = field(default_factory=Graph)
    values: dict[Ref, Value] = field(default_factory=dict)
    count_arguments: list[dict[str, list[tuple[Layout, int]]]] = field(default_factory=list)
    boxes: Boxes = field(default_factory=dict)
    gated: list[Layout] = field(default_factory=list)


class NotUnderstood(Exception):
    """The rule of an operator does not cover this use of it; the message is shown to the user as the reason."""


def values_in(args: tuple, kwargs: dict[str, Any]) -> list[Value]:
    """The tensors among the arguments of an operator."""
    return [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Value)]


def matching_dims(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Iterator[tuple[range, range]]:
    """Matches the dimensions of two shapes of one tensor: the shortest ranges with equal numbers of elements."""
    i = j = 0
    while i < len(ours) or j < len(theirs):
        first, other = i, j
        i, j = min(i + 1, len(ours)), min(j + 1, len(theirs))
        while (left := math.prod(ours[first:i])) != (right := math.prod(theirs[other:j])):
            if left < right:
                i += 1
            else:
                j += 1
        yield range(first, i), range(other, j)
