"""Cuts a trained network down to a narrower one of the same structure, by importance of its channels.

Both networks are traced, which tells which dimensions of which parameters hold the same channels. Of every group of
channels the most important ones are kept, in their order, and all parameters and statistics along them are copied.
"""

from __future__ import annotations

import torch
from torch import nn

from .graph.export import Forward
from .graph.reader import OUTPUT, trace
from .graph.structure import Trace
from .groups import FACTORS_OF_BASE, UNREAD, ChannelGroup, find_groups
from .layers import Axis
from .plan import Plan
from .sort import channel_importance, most_important_first


def cut_channels(tiny: nn.Module, large: nn.Module, forward: Forward, image_shape: tuple[int, int, int]) -> None:
    """Copies the most important channels of a trained network into a narrower one.

    Channels are ranked as ``sort_hidden_channels`` ranks them, by the L1 norm of the weights that read them, and those
    that nothing reads by the weights that make them. Unlike there, widths between blocks are cut as well. If the
    channels left out contribute nothing, ``tiny`` computes what ``large`` computes. If they do, the running statistics
    of batch norms behind them no longer match: train the network or re-estimate them before it is evaluated.

    Args:
        tiny: A plain network. Its parameters and buffers are overwritten in place.
        large: A plain network with the same modules, as wide or wider everywhere. It is not changed.
        forward: Calls either network on an image batch and returns all its output tensors.
        image_shape: (C, H, W) of the images to trace with; any size that both networks accept.

    Raises:
        ValueError: The networks differ in more than their widths, or in the width of something that is not understood.
            ``tiny`` is then unchanged.
        TraceError: A network cannot be traced.
    """
    ours, theirs = tiny.state_dict(), large.state_dict()
    if differing := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(f"one of the two networks alone holds {', '.join(differing[:5])}")
    narrow_trace, narrow_axes = _traced(tiny, forward, image_shape)
    found, axes = _traced(large, forward, image_shape)
    _check_same_steps(narrow_trace, found)
    widths = _widths(axes, narrow_axes)
    # Weights that read channels decide. Those that make them do where nothing reads them.
    weights = [(theirs[name], dim, axes[name]) for name, dim in found.input_dims.items() if name in axes]
    importance = channel_importance((weight, 1 - dim, of) for weight, dim, of in weights)
    importance |= channel_importance(weights)
    kept = {
        group: most_important_first(importance[group], group.step)[:width].sort().values
        for group, width in widths.items()
        if width < group.base_width
    }
    cut = {}
    for name, value in theirs.items():
        cut[name] = value
        for axis in axes.get(name, ()):
            places = [
                at[kept[run].cpu()] if run in kept else at for run, at in zip(axis.runs, axis.places(), strict=True)
            ]
            cut[name] = cut[name].index_select(axis.dim, torch.cat(places).to(value.device))
        if cut[name].shape != ours[name].shape:
            raise ValueError(
                f"{name} is {tuple(value.shape)} in the larger network and {tuple(ours[name].shape)} in the tiny one, "
                "and the trace does not show it"
            )
    with torch.no_grad():
        for name, value in cut.items():
            ours[name].copy_(value)


def _traced(
    model: nn.Module, forward: Forward, image_shape: tuple[int, int, int]
) -> tuple[Trace, dict[str, tuple[Axis, ...]]]:
    """Traces a network; returns the trace, and every dimension of its parameters that is larger than one."""
    image = torch.zeros(2, *image_shape).to(next(model.parameters()))  # two, as in make_elastic
    found = trace(model, forward, image)
    _, group_of_run = find_groups(model, found, "", FACTORS_OF_BASE, FACTORS_OF_BASE, {})
    plan = Plan(model, found, group_of_run)
    axes = {
        name: tuple(Axis(dim, plan.runs(layout)) for dim, layout in dims.items())
        for name, dims in found.parameters.items()
    }
    return found, axes


def _check_same_steps(tiny: Trace, large: Trace) -> None:
    """Rejects networks that run other operators, such as a shortcut that one of them alone has."""
    ours, theirs = ([(step.name, step.module) for step in found.graph.steps] for found in (tiny, large))
    if ours != theirs:
        pairs = zip(ours, theirs, strict=False)
        name, module = next((a for a, b in pairs if a != b), min(ours, theirs, key=len)[-1])
        raise ValueError(f"the two networks run other operators, from {name} in {module or 'the network'} on")


def _widths(large: dict[str, tuple[Axis, ...]], tiny: dict[str, tuple[Axis, ...]]) -> dict[ChannelGroup, int]:
    """The width in the tiny network of every group of the larger one."""
    widths: dict[ChannelGroup, int] = {}
    for name, axes in large.items():
        narrow = {axis.dim: axis.runs for axis in tiny.get(name, ())}
        for axis in axes:
            runs = narrow.get(axis.dim, ())
            if len(runs) != len(axis.runs):
                raise ValueError(f"dimension {axis.dim} of {name} consists of other channels in the two networks")
            for group, counterpart in zip(axis.runs, runs, strict=True):
                width = widths.setdefault(group, counterpart.base_width)
                if fault := _fault(group, counterpart, width):
                    raise ValueError(
                        f"dimension {axis.dim} of {name} has {group.base_width} channels in the larger network and "
                        f"{counterpart.base_width} in the tiny one: {fault}"
                    )
    return widths


def _fault(group: ChannelGroup, counterpart: ChannelGroup, width: int) -> str | None:
    """Why channels cannot be cut to those of the tiny network, or None."""
    if counterpart.base_width != width:
        return f"other parameters along the same channels have {width}"
    if width == group.base_width:
        return None
    if width > group.base_width:
        return "it is to be at least as wide"
    if group.held_reason not in (None, OUTPUT, UNREAD):
        return group.held_reason
    if group.step != counterpart.step:
        return f"they come in groups of {group.step} there and of {counterpart.step} here"
    return None
