"""Gradient surgery between the two passes of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def remove_conflict(pairs: Sequence[tuple[Tensor, Tensor]], per_tensor: bool) -> None:
    """Projects gradients that oppose others onto the normal plane of those, in place (PCGrad, Yu et al., 2020).

    Args:
        pairs: Pairs of equal shape: a gradient that stays, and the one that is projected.
        per_tensor: Whether to treat each pair separately, or all of them as one pair of vectors.
    """
    products = torch.stack([torch.sum(base * other) for base, other in pairs])
    squares = torch.stack([torch.sum(base * base) for base, _ in pairs])
    if not per_tensor:
        products, squares = products.sum().expand_as(products), squares.sum().expand_as(squares)
    tiny = torch.finfo(squares.dtype).tiny
    factors = products.clamp(max=0) / squares.clamp(min=tiny)
    for (base, other), factor in zip(pairs, factors, strict=True):
        other.sub_(factor * base)
