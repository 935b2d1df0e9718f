"""Network Augmentation for tiny networks, as an extension of MMDetection and MMPretrain.

Importing the package registers everything that configs name: ``custom_imports = dict(imports=['mmnetaug'])``.
"""

from . import environment

environment.check()

from . import datasets, demo, models
from .engine import (
    BestPictureHook,
    ChannelSortHook,
    CPUTuningHook,
    NetAugAmpOptimWrapper,
    NetAugOptimWrapper,
    NetAugScheduleHook,
    TinyCheckpointHook,
    TrainAccuracyHook,
)
from .models import NetAug
from .version import __version__
from .visualization import TensorboardIfInstalled

__all__ = [
    "BestPictureHook",
    "CPUTuningHook",
    "ChannelSortHook",
    "NetAug",
    "NetAugAmpOptimWrapper",
    "NetAugOptimWrapper",
    "NetAugScheduleHook",
    "TensorboardIfInstalled",
    "TinyCheckpointHook",
    "TrainAccuracyHook",
    "__version__",
    "datasets",
    "demo",
    "models",
]
