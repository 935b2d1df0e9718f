"""mmpretrain's MobileNetV2 without unused layers, for detectors."""

from __future__ import annotations

from mmpretrain.models.backbones import MobileNetV2 as StockMobileNetV2

from mmnetaug.registry import MODELS


@MODELS.register_module()
class MobileNetV2(StockMobileNetV2):
    """mmpretrain's MobileNetV2 up to the last output layer, with the same parameter names.

    The stock class always builds its last block and 1x1 convolution. In a detector that uses earlier layers they get
    no gradient (with which DistributedDataParallel fails) and count as parameters of the network.

    Args:
        **kwargs: See ``mmpretrain.MobileNetV2``. For C3, C4 and C5, ``out_indices=(2, 4, 5)``: the last layer of each
            stride before the final widening (16, 32 and 56 channels at width 0.35).
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        used = max(self.out_indices) + 1
        for name in self.layers[used:]:
            delattr(self, name)
        del self.layers[used:]
