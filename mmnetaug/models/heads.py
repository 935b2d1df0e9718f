"""Heads that mmpretrain and mmdet do not have, and what SSD's head lacks."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from mmdet.models import RTMDetSepBNHead, SSDHead
from mmpretrain.models.heads import LinearClsHead
from torch import Tensor, nn

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


@MODELS.register_module()
class SizedRTMDetHead(RTMDetSepBNHead):
    """mmdet's ``RTMDetSepBNHead``, whose boxes start two strides wide and high.

    mmdet's start without a size. They overlap no object, and the overlap weighs the box loss and is the target of the
    class score, so at first neither teaches much. ``exp_on_reg=True`` starts at the same size, by an exponential that
    TensorFlow Lite Micro does not compute in int8.

    Arguments: see ``mmdet.RTMDetSepBNHead``; leave ``exp_on_reg`` off.
    """

    def init_weights(self) -> None:
        """Initialises as mmdet does, but starts the distances to a box's sides at one stride."""
        super().init_weights()
        for layer in self.rtm_reg:
            nn.init.ones_(layer.bias)
