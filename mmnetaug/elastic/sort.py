"""Sorts hidden channels, so that the tiny network holds the most important ones.

The authors sort the hidden channels of every inverted bottleneck by the L1 norm of the weights that read them, at the
start of each epoch with width augmentation. Permuting hidden channels does not change the largest network as long as
*everything* along them is permuted: weights on both sides, norms and their statistics, optimizer state and EMA copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .groups import ChannelGroup
from .layers import Elastic


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


def _orders(model: nn.Module) -> dict[int, Tensor]:
    """For each sorted group, by its index, its channels from the most to the least important."""
    groups = model.elastic.groups
    importance: dict[ChannelGroup, Tensor] = {}
    with torch.no_grad():
        for layer in model.modules():
            for name, read in layer.elastic_reads.items() if isinstance(layer, Elastic) else ():
                made = [run for axis in layer.elastic_axes[name] if axis.dim != read for run in axis.runs]
                if any(run.role == "squeeze" for run in made):
                    continue  # a gate reads the channels too, but importance is that for the projection
                weight = layer.stored(name).abs()
                norms = weight.sum([dim for dim in range(weight.dim()) if dim != read])
                for axis in [axis for axis in layer.elastic_axes[name] if axis.dim == read]:
                    for run, places in zip(axis.runs, axis.places(), strict=True):
                        importance[run] = importance.get(run, 0) + norms[places.to(norms.device)]
    orders = {}
    for number, group in enumerate(groups):
        if group.role != "width" and not group.held_reason and group in importance:
            blocks = importance[group].view(-1, group.step).sum(1)  # channels of a grouped operation move together
            order = blocks.argsort(descending=True, stable=True)
            orders[number] = (order[:, None] * group.step + torch.arange(group.step, device=order.device)).flatten()
    return orders


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
