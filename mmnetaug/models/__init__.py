"""``NetAug``, which makes a model elastic, and the plain networks and parts of networks of the configs."""

from mmdet.models import SSDHead

from .distill import DistilledClassifier
from .drop_block import DropBlock
from .heads import DropoutClsHead
from .mobilenet import MobileNetV2
from .netaug import NetAug
from .same_padding import SameConv2d, SamePadding
from .tinyml import ARCHITECTURES, TinyNet
from .tinytl import TinyTL
from .yolov3 import DepthwiseYOLOV3Head, DepthwiseYOLOV3Neck

__all__ = [
    "ARCHITECTURES",
    "DepthwiseYOLOV3Head",
    "DepthwiseYOLOV3Neck",
    "DistilledClassifier",
    "DropBlock",
    "DropoutClsHead",
    "MobileNetV2",
    "NetAug",
    "SameConv2d",
    "SamePadding",
    "TinyNet",
    "TinyTL",
]

# It cannot predict without: https://github.com/open-mmlab/mmdetection/issues/11780
if not hasattr(SSDHead, "loss_cls"):
    SSDHead.loss_cls = None
