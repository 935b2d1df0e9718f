"""The NetAug training step and the hooks around it."""

from .amp import NetAugAmpOptimWrapper
from .best_picture import BestPictureHook
from .cpu_tuning import CPUTuningHook
from .hooks import ChannelSortHook, NetAugScheduleHook, TinyCheckpointHook
from .optim_wrapper import NetAugOptimWrapper
from .train_accuracy import TrainAccuracyHook

__all__ = [
    "BestPictureHook",
    "CPUTuningHook",
    "ChannelSortHook",
    "NetAugAmpOptimWrapper",
    "NetAugOptimWrapper",
    "NetAugScheduleHook",
    "TinyCheckpointHook",
    "TrainAccuracyHook",
]
