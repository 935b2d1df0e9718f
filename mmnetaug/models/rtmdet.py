"""mmdet's RTMDet head with another start."""

from __future__ import annotations

from mmdet.models import RTMDetSepBNHead
from torch import nn

from mmnetaug.registry import MODELS


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
