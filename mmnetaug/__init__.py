"""Network Augmentation for tiny networks, as an extension of MMDetection and MMPretrain.

Importing the package lets configs name everything in it: ``custom_imports = dict(imports=['mmnetaug'])``. Unless mmdet
is imported already, nothing more is imported before it is used, since torch and OpenMMLab take seconds: MMEngine
imports what configs name by the registries (``registry.py``), and the names below are imported when they are read.
"""

import importlib
import sys
from typing import Any

from . import environment
from .version import __version__

environment.check()

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
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    rooms = {"NetAug": "models", "TensorboardIfInstalled": "visualization"}
    return getattr(importlib.import_module(f".{rooms.get(name, 'engine')}", __name__), name)


if "mmdet.models" in sys.modules:  # nothing is gained by waiting
    for _room in ("datasets", "demo", "engine", "models", "visualization"):
        importlib.import_module(f".{_room}", __name__)
