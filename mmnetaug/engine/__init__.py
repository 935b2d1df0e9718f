"""The NetAug training step and the hooks around it."""

from .curves import TrainAccuracyHook
from .hooks import ChannelsLastHook, ChannelSortHook, NetAugScheduleHook, TinyCheckpointHook
from .optim_wrapper import NetAugAmpOptimWrapper, NetAugOptimWrapper

__all__ = [
    "ChannelSortHook",
    "ChannelsLastHook",
    "NetAugAmpOptimWrapper",
    "NetAugOptimWrapper",
    "NetAugScheduleHook",
    "TinyCheckpointHook",
    "TrainAccuracyHook",
]
