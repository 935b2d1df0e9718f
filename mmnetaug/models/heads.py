"""A classifier head that mmpretrain does not have, and what SSD's head lacks."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from mmdet.models import SSDHead
from mmpretrain.models.heads import LinearClsHead
from torch import Tensor

from mmnetaug.registry import MODELS

# SSDHead fails in prediction without it: https://github.com/open-mmlab/mmdetection/issues/11780
if not hasattr(SSDHead, "loss_cls"):
    SSDHead.loss_cls = None


@MODELS.register_module()
class DropoutClsHead(LinearClsHead):
    """mmpretrain's ``LinearClsHead`` with dropout in front of the classifier; its parameters are the same.

    Args:
        dropout: Probability that a feature is dropped in training: 1 minus the paper's keep probability.
        kwargs: See ``mmpretrain.LinearClsHead``.
    """

    def __init__(self, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Features (N, C) before the classifier."""
        return F.dropout(super().pre_logits(feats), self.dropout, self.training)
