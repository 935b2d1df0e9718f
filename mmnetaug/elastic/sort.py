"""Sorts hidden channels, so that the tiny network holds the most important ones.

The authors sort the hidden channels of every inverted bottleneck by the L1 norm of the weights that read them, at the
start of each epoch with width augmentation. Permuting hidden channels does not change the largest network as long as
*everything* along them is permuted: weights on both sides, norms and their statistics, optimizer state and EMA copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .groups import ChannelGroup
from .layers import Axis, Elastic


def sort_hidden_channels(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, copies: Iterable[nn.Module] = ()
) -> None:
    """Sorts the channels of all groups hidden inside of a block (roles expand and squeeze), most important first.

    Stage widths are never sorted. The largest network stays the same function up to rounding; narrower ones change.

    Args:
        model: An elastic model, ``model.elastic`` its space.
        optimizer: Its optimizer; state in the shape of a parameter (momentum, Adam's moments) is sorted too.
        copies: Other copies of the model (EMA) to put into the same order.
    """
    orders = _orders(model)
    _reorder(model, orders, optimizer.state if optimizer is not None else {})
    for copy in copies:
        _reorder(copy, orders, {})


def channel_importance(
    weights: Iterable[tuple[Tensor, int, Sequence[Axis]]],
) -> dict[ChannelGroup, Tensor]:
    """Sums, for every channel, the L1 norms of the weights along it.

    Args:
        weights: Weights that map channels to others, each with the dimension to measure along (that of the channels
            that it reads, for the authors' criterion) and its axes.

    Returns:
        One value per channel, for the groups along these dimensions. A gate (squeeze-and-excitation) reads the channels
        too, but does not count: importance is that for the projection.
    """
    importance: dict[ChannelGroup, Tensor] = {}
    for weight, dim, axes in weights:
        if any(run.role == "squeeze" for axis in axes if axis.dim != dim for run in axis.runs):
            continue
        norms = weight.detach().abs().sum([other for other in range(weight.dim()) if other != dim])
        for axis in [axis for axis in axes if axis.dim == dim]:
            for run, places in zip(axis.runs, axis.places(), strict=True):
                importance[run] = importance.get(run, 0) + norms[places.to(norms.device)]
    return importance


def most_important_first(importance: Tensor, step: int) -> Tensor:
    """Numbers of channels, most important first; ``step`` neighbours (a grouped operation) stay together."""
    order = importance.view(-1, step).sum(1).argsort(descending=True, stable=True)
    return (order[:, None] * step + torch.arange(step, device=order.device)).flatten()


def _orders(model: nn.Module) -> dict[int, Tensor]:
    """For each sorted group, by its index, its channels from the most to the least important."""
    importance = channel_importance(
        (layer.stored(name), dim, layer.elastic_axes[name])
        for layer in model.modules()
        if isinstance(layer, Elastic)
        for name, dim in layer.elastic_reads.items()
    )
    return {
        number: most_important_first(importance[group], group.step)
        for number, group in enumerate(model.elastic.groups)
        if group.role != "width" and not group.held_reason and group in importance
    }


def _reorder(model: nn.Module, orders: Mapping[int, Tensor], state: Mapping[nn.Parameter, Mapping[str, Any]]) -> None:
    of_group = {model.elastic.groups[number]: order for number, order in orders.items()}
    with torch.no_grad():
        for layer in model.modules():
            if not isinstance(layer, Elastic):
                continue
            for name, axes in layer.elastic_axes.items():
                stored = layer.stored(name)
                moments = [
                    value
                    for value in state.get(stored, {}).values()
                    if isinstance(value, Tensor) and value.shape == stored.shape
                ]
                for axis in axes:
                    for run, places in zip(axis.runs, axis.places(), strict=True):
                        if run in of_group:
                            places = places.to(stored.device)
                            source = places[of_group[run].to(stored.device)]
                            for tensor in (stored, *moments):
                                tensor.index_copy_(axis.dim, places, tensor.index_select(axis.dim, source))
