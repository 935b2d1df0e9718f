"""The NetAug training step and the hooks around it."""

from .cpu_tuning import CPUTuningHook
from .curves import TrainAccuracyHook
from .hooks import ChannelSortHook, NetAugScheduleHook, TinyCheckpointHook
from .optim_wrapper import NetAugAmpOptimWrapper, NetAugOptimWrapper

__all__ = [
    "CPUTuningHook",
    "ChannelSortHook",
    "NetAugAmpOptimWrapper",
    "NetAugOptimWrapper",
    "NetAugScheduleHook",
    "TinyCheckpointHook",
    "TrainAccuracyHook",
]
