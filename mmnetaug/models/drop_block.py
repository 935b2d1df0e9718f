"""DropBlock as in the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmnetaug.registry import MODELS


@MODELS.register_module()
class DropBlock(nn.Module):
    """Zeroes square blocks of an image's features, the same in all channels, and scales up the rest.

    It computes the same as https://github.com/miguelvr/dropblock, which the paper cites (appendix A). mmdet's
    ``DropBlock`` draws blocks for every channel separately, and few in its first 2000 iterations: on small feature
    maps, that is dropout of single channels.

    Args:
        drop_prob: Probability that a position is dropped, if blocks neither overlap nor cross the border.
        block_size: Height and width of a block, odd.
    """

    def __init__(self, drop_prob: float, block_size: int) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1 or block_size % 2 == 0:
            raise ValueError(f"drop_prob is in [0, 1) and block_size odd, got {drop_prob} and {block_size}")
        self.drop_prob, self.block_size = drop_prob, block_size

    def forward(self, x: Tensor) -> Tensor:
        """Drops blocks of ``x`` (N, C, H, W) in training mode."""
        if not self.training:
            return x
        centres = (torch.rand(len(x), 1, *x.shape[2:], device=x.device) < self.drop_prob / self.block_size**2).float()
        kept = 1 - F.max_pool2d(centres, self.block_size, stride=1, padding=self.block_size // 2)
        return x * (kept * kept.numel() / kept.sum().clamp(min=1)).to(x.dtype)
