"""The NetAug training step and the hooks around it."""

from .hooks import NetAugScheduleHook, TinyCheckpointHook
from .optim_wrapper import NetAugAmpOptimWrapper, NetAugOptimWrapper

__all__ = ["NetAugAmpOptimWrapper", "NetAugOptimWrapper", "NetAugScheduleHook", "TinyCheckpointHook"]
