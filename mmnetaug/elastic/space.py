"""The widths of an elastic network: sampling and setting them, and the tiny network's state dict."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .groups import FACTORS_OF_BASE, ChannelGroup
from .layers import Elastic


class ElasticSpace:
    """All networks that an elastic network contains; attached to it as ``model.elastic``.

    Attributes:
        groups: The channel groups in graph order, those held at base width included.
        driven: Whether an optimizer wrapper adds augmented passes. Without one the additional channels would never
            learn, so ``mmnetaug.NetAug`` refuses a forward pass in training.
    """

    def __init__(self, groups: list[ChannelGroup]) -> None:
        self.groups = groups
        self.driven = False

    def __str__(self) -> str:
        return "\n".join(map(str, self.groups))

    def base(self) -> list[int]:
        """Widths of the tiny network, one per group."""
        return [group.base_width for group in self.groups]

    def largest(self) -> list[int]:
        """Widths of the largest augmented network."""
        return [group.max_width for group in self.groups]

    def sample(self, seed: int, iteration: int, width: bool = True, expand: bool = True) -> list[int]:
        """Widths of the augmented network of one training step.

        A pure function of its arguments: equal on all ranks, after a resume and on any device.

        Args:
            seed: Seed of the run.
            iteration: Training iteration.
            width: Whether width factors are sampled; they are 1 otherwise.
            expand: Whether expand factors are sampled.

        Returns:
            One width per group.
        """
        generator = random.Random(f"{seed}:{iteration}")
        on = {"width": width, "expand": expand, "squeeze": True}
        own = {}
        for group in self.groups:
            factor = generator.choice(FACTORS_OF_BASE if group.held_reason else group.factors)
            own[group] = factor if on[group.role] else 1.0
        return [group.round(math.prod(own[one] for one in group.multiplied())) for group in self.groups]

    @contextlib.contextmanager
    def at(self, widths: list[int]) -> Iterator[None]:
        """Sets the widths, one per group, inside of a ``with`` block."""
        before = [group.width for group in self.groups]
        try:
            self._set(widths)
            yield
        finally:
            self._set(before)

    def _set(self, widths: list[int]) -> None:
        for group, width in zip(self.groups, widths, strict=True):
            group.width = width


def find_spaces(model: nn.Module, trained_only: bool = False) -> list[ElasticSpace]:
    """Finds the elastic spaces of a model and its submodules, also inside of wrappers such as DDP.

    Args:
        model: Any model.
        trained_only: Whether to skip frozen networks, in which no parameter requires a gradient.
    """
    return [
        module.elastic
        for module in model.modules()
        if isinstance(getattr(module, "elastic", None), ElasticSpace)
        if not trained_only or any(parameter.requires_grad for parameter in module.parameters())
    ]


def base_state_dict(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tiny network's state dict: stock names, base shapes.

    Args:
        model: An elastic model, or a plain one, whose whole state dict is returned.
        state: State dict of the model to take values from, such as that of an EMA copy; its own by default.

    Returns:
        Copies of the tensors. They load strictly into the plain model.
    """
    state = dict(model.state_dict() if state is None else state)
    for path, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, Elastic):
            for name in layer.elastic_axes:
                key = f"{path}.{name}" if path else name
                if key in state:  # it may lack buffers
                    state[key] = state[key][layer.base_block(name)]
    return {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in state.items()}


@contextlib.contextmanager
def tiny_storage(model: nn.Module) -> Iterator[None]:
    """Reduces the storage of elastic layers to the tiny network inside of a ``with`` block.

    Code that fills parameters in place (initialisers) then sees exactly the plain network: same shapes and memory
    layout, hence the same random numbers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Elastic)]
    stored = [(layer, name, layer.base_block(name)) for layer in layers for name in layer.elastic_axes]
    large = [layer.stored(name).data for layer, name, _ in stored]
    # The parameters stay the same objects: MMEngine tracks them during initialisation.
    for (layer, name, block), values in zip(stored, large, strict=True):
        layer.stored(name).data = values[block].clone(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        for (layer, name, block), values in zip(stored, large, strict=True):
            tensor = layer.stored(name)
            values[block] = tensor.data
            tensor.data = values


def fill_new_channels(model: nn.Module, preserving: bool = True) -> None:
    """Initialises all additional channels with values drawn from the tiny network.

    Weights that read new channels are zero-initialised, so that every augmented network starts as the function that
    the tiny network computes (up to norms over channels), with the same gradient. With random weights, the two
    gradients of a deep network are orthogonal at first, and the augmented one is noise to the tiny network
    (docs/results.md). The global random state is not changed.

    Args:
        model: An elastic model; its tiny network is not changed.
        preserving: False to draw the weights that read new channels as well.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.modules():
            for name in layer.elastic_axes if isinstance(layer, Elastic) else ():
                layer.fill_new(name, layer.stored(name), generator, preserving)


@contextlib.contextmanager
def tiny_statistics_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Keeps the tiny network's running statistics through an augmented pass; those of additional channels follow it.

    Sorting may bring an additional channel into the tiny network, which then evaluates with its statistics.

    Args:
        modules: Those of the model, or those of them that have buffers.
    """

    def block(module: nn.Module, name: str) -> Any:
        return module.base_block(name) if isinstance(module, Elastic) and name in module.elastic_axes else ...

    kept = [
        (module, name, block(module, name), buffer[block(module, name)].clone())
        for module in modules
        for name, buffer in (module.named_buffers(recurse=False) if module.training else ())
    ]
    try:
        yield
    finally:
        for module, name, where, values in kept:  # a norm by hand may have put another tensor there
            module._buffers[name][where] = values
