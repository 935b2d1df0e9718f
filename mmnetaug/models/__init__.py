"""Plain networks and parts of networks: nothing in here knows of NetAug."""

from .mobilenet import MobileNetV2
from .tinyml import ARCHITECTURES, TinyNet
from .yolov3 import DepthwiseYOLOV3Head, DepthwiseYOLOV3Neck

__all__ = ["ARCHITECTURES", "DepthwiseYOLOV3Head", "DepthwiseYOLOV3Neck", "MobileNetV2", "TinyNet"]
