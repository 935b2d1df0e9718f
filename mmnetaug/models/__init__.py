"""``NetAug``, which makes a model elastic, and the networks, necks and heads of the configs."""

import mmnetaug.registry  # noqa: F401  (first, since it imports OpenMMLab's data sets without what they print)

from .distilled import Distilled
from .heads import DropoutClsHead, SizedRTMDetHead
from .netaug import NetAug
from .same_padding import SamePadding
from .tinyml import ARCHITECTURES, DropBlock, MobileNetV2, TinyNet
from .tinytl import TinyTL
from .yolov3 import DepthwiseYOLOV3Head, DepthwiseYOLOV3Neck

__all__ = [
    "ARCHITECTURES",
    "DepthwiseYOLOV3Head",
    "DepthwiseYOLOV3Neck",
    "Distilled",
    "DropBlock",
    "DropoutClsHead",
    "MobileNetV2",
    "NetAug",
    "SamePadding",
    "SizedRTMDetHead",
    "TinyNet",
    "TinyTL",
]
