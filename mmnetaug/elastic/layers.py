"""Elastic layers: stock layers whose parameters have the current width when they are read.

An elastic layer is an instance of a generated subclass of its class and keeps its parameter names. It stores the
parameters of the largest network; reading ``layer.weight`` gives the part for the current width, so any forward pass
written for the stock layer works at any width. Along every dimension, the channels of the tiny network come first in
storage (of all runs, then the additional ones of each run): **the tiny network is the leading block of every
parameter**.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .groups import ChannelGroup


@dataclass(frozen=True)
class Axis:
    """One elastic dimension of a parameter: the groups of the runs along it, in the order of the forward pass."""

    dim: int
    runs: tuple[ChannelGroup, ...]

    @property
    def base(self) -> int:
        return sum(run.base_width for run in self.runs)

    @property
    def stored(self) -> int:
        return sum(run.max_width for run in self.runs)

    @property
    def width(self) -> int:
        return sum(run.width for run in self.runs)

    def pieces(self) -> list[tuple[int, int]]:
        """Ranges (start, length) of storage that make up the current width, in forward order."""
        if len(self.runs) == 1:
            return [(0, self.runs[0].width)]
        pieces: list[tuple[int, int]] = []
        base, extra = 0, self.base
        for run in self.runs:
            for start, length in ((base, run.base_width), (extra, run.width - run.base_width)):
                if length and pieces and sum(pieces[-1]) == start:
                    pieces[-1] = (pieces[-1][0], pieces[-1][1] + length)
                elif length:
                    pieces.append((start, length))
            base += run.base_width
            extra += run.max_width - run.base_width
        return pieces

    def places(self) -> list[Tensor]:
        """The storage indices of all channels of each run, in forward order."""
        places, base, extra = [], 0, self.base
        for run in self.runs:
            added = run.max_width - run.base_width
            places.append(torch.cat([torch.arange(base, base + run.base_width), torch.arange(extra, extra + added)]))
            base, extra = base + run.base_width, extra + added
        return places

    def take(self, tensor: Tensor) -> Tensor:
        """Selects the current width along this dimension: a view if it is one range of storage, as at base width."""
        pieces = self.pieces()
        if len(pieces) == 1:
            start, length = pieces[0]
            return tensor if length == tensor.shape[self.dim] else tensor.narrow(self.dim, start, length)
        return torch.cat([tensor.narrow(self.dim, start, length) for start, length in pieces], self.dim)


class _TinyBlock(torch.autograd.Function):
    """Reads the tiny network's block of a parameter; backward adds to that block of the parameter's gradient in place.

    Autograd itself pads the block's gradient with zeros to the size of the parameter, and adds all of that.
    """

    @staticmethod
    def forward(ctx: Any, stored: Tensor, block: tuple[slice, ...]) -> Tensor:
        ctx.stored, ctx.block = stored, block
        return stored[block]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        if ctx.stored.grad is not None:
            ctx.stored.grad[ctx.block].add_(gradient)
            return None, None
        padded = torch.zeros_like(ctx.stored)
        padded[ctx.block] = gradient
        return padded, None


_adds_in_place = False


@contextlib.contextmanager
def tiny_gradients_in_place() -> Iterator[None]:
    """Has forward passes inside of a ``with`` block add the tiny network's gradients in place where there are some.

    It saves time and memory in a backward pass that follows that of a larger network. Such a pass cannot be
    differentiated with respect to parameters by ``torch.autograd.grad``, and hooks of distributed training do not see
    the gradients. Parameters with hooks of their own are left out.
    """
    global _adds_in_place
    before, _adds_in_place = _adds_in_place, True
    try:
        yield
    finally:
        _adds_in_place = before


Count = int | tuple[int, ...]
"""A number of channels or of groups of them, or a tuple that starts with it (``normalized_shape`` of a layer norm)."""


def count_at_width(axis: Axis, base: Count) -> Count:
    """A count at the current width."""
    first, *rest = base if isinstance(base, tuple) else (base,)
    first = first * axis.width // axis.base
    return (first, *rest) if isinstance(base, tuple) else first


class Elastic(nn.Module):
    """Mixin of every elastic layer; it comes before the layer's class.

    Attributes:
        elastic_axes: Elastic dimensions of each elastic parameter or buffer.
        elastic_counts: Axis and base value of each attribute that counts channels or groups of them.
        elastic_reads: Dimension of input channels of each parameter that maps channels to others.
    """

    elastic_axes: dict[str, tuple[Axis, ...]]
    elastic_counts: dict[str, tuple[Axis, Count]]
    elastic_reads: dict[str, int]

    def stored(self, name: str) -> Tensor:
        """The parameter or buffer of the largest network."""
        tensor = self._parameters.get(name)
        return self._buffers[name] if tensor is None else tensor

    def __setattr__(self, name: str, value: Any) -> None:
        """Stores a buffer that has the current width, as code that assigns running statistics writes it."""
        buffer = self.__dict__.get("_buffers", {}).get(name)
        if isinstance(value, Tensor) and buffer is not None and name in self.__dict__.get("elastic_axes", {}):
            places = torch.arange(buffer.numel(), device=buffer.device).view(buffer.shape)
            for axis in self.elastic_axes[name]:
                places = axis.take(places)
            if value.shape == places.shape != buffer.shape:
                value = buffer.flatten().index_copy(0, places.flatten(), value.to(buffer).flatten()).view(buffer.shape)
        super().__setattr__(name, value)

    def base_block(self, name: str) -> tuple[slice, ...]:
        """Index of the tiny network in a parameter."""
        index = [slice(None)] * self.stored(name).dim()
        for axis in self.elastic_axes[name]:
            index[axis.dim] = slice(axis.base)
        return tuple(index)

    def fill_new(self, name: str, stored: Tensor, generator: torch.Generator, preserving: bool = True) -> None:
        """Fills the additional channels of a parameter or buffer with values drawn from the tiny network's.

        New channels therefore start at the tiny network's scale, and constants (norm weights, statistics) are kept.

        Args:
            name: Name of the parameter or buffer.
            stored: The tensor at the size of the largest network, changed in place.
            generator: Source of random numbers.
            preserving: Whether weights that read new channels start at zero.
        """
        block = self.base_block(name)
        base = stored[block].clone()
        picked = torch.randint(base.numel(), (stored.numel(),), generator=generator).to(stored.device)
        stored.copy_(base.flatten()[picked].view(stored.shape))
        stored[block] = base
        if preserving:
            for axis in self.elastic_axes[name]:
                if axis.dim == self.elastic_reads.get(name):
                    stored.narrow(axis.dim, axis.base, axis.stored - axis.base).zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Loads parameters of the largest network, or of the tiny one with additional channels drawn from it.

        Inside of ``tiny_storage``, loads the tiny network's part of parameters of the largest network.
        """
        for name, axes in self.elastic_axes.items():
            given, stored = state_dict.get(prefix + name), self.stored(name)
            if given is None or given.shape == stored.shape or given.dim() != stored.dim():
                continue
            block = self.base_block(name)
            if given.shape == stored[block].shape:
                merged = stored.detach().clone()
                merged[block] = given.to(merged)
                self.fill_new(name, merged, torch.Generator().manual_seed(0))
                state_dict[prefix + name] = merged
            elif all(given.shape[axis.dim] == axis.stored for axis in axes) and given[block].shape == stored.shape:
                state_dict[prefix + name] = given[block]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def make_layer_elastic(
    layer: nn.Module,
    axes: dict[str, tuple[Axis, ...]],
    counts: dict[str, tuple[Axis, Count]],
    reads: dict[str, int],
) -> None:
    """Makes a layer elastic in place; its parameters keep their base size until ``grow`` enlarges them."""
    layer.__class__ = _elastic_class(type(layer), tuple(axes), tuple(counts))  # type: ignore[arg-type]  # is hashable
    layer.elastic_axes, layer.elastic_counts, layer.elastic_reads = axes, counts, reads


def grow(layer: nn.Module) -> None:
    """Enlarges the parameters of an elastic layer to the largest network; additional entries are zero.

    The parameters stay the same objects, with their hooks and attributes.
    """
    for name, axes in layer.elastic_axes.items():
        old = layer.stored(name)
        shape = list(old.shape)
        for axis in axes:
            shape[axis.dim] = axis.stored
        new = old.new_zeros(shape)
        new[tuple(slice(size) for size in old.shape)] = old.detach()
        old.data = new


@functools.cache
def _elastic_class(plain: type[nn.Module], tensors: tuple[str, ...], counts: tuple[str, ...]) -> type[nn.Module]:
    def tensor_property(name: str) -> property:
        def read(self: Elastic) -> Tensor:
            tensor, axes = self.stored(name), self.elastic_axes[name]
            # the padding of vectors costs less than a call from Python
            in_place = _adds_in_place and tensor.dim() > 1 and all(axis.width == axis.base for axis in axes)
            if in_place and not (tensor._backward_hooks or tensor._post_accumulate_grad_hooks):
                tensor = _TinyBlock.apply(tensor, self.base_block(name))
            else:
                for axis in axes:
                    tensor = axis.take(tensor)
            # the strides of its weight decide by which matrix products PyTorch computes a linear layer, to rounding
            return tensor.contiguous() if tensor.dim() == 2 else tensor

        return property(read)

    def count_property(name: str) -> property:
        def read(self: Elastic) -> Count:
            return count_at_width(*self.elastic_counts[name])

        # Constructors and copies assign the attribute, but its base value is in elastic_counts.
        return property(read, lambda self, value: None)

    def refuse_conversion(self: Elastic) -> int:
        raise RuntimeError(
            "converting an elastic network to SyncBatchNorm would lose its additional channels: set "
            "norm_cfg=dict(type='SyncBN') in the model's config instead of sync_bn"
        )

    members = {name: tensor_property(name) for name in tensors} | {name: count_property(name) for name in counts}
    if issubclass(plain, nn.modules.batchnorm._BatchNorm):
        members["num_features"] = property(refuse_conversion, lambda self, value: None)  # read by converters only
    # MMEngine's initialisers match the class name and the names of direct bases: keep both.
    return type(plain.__name__, (Elastic, plain, *plain.__bases__), {"__module__": __name__, **members})
