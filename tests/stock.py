"""Configs of MMDetection and MMPretrain, without what takes long."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.utils import get_installed_path


def config_path(name: str) -> str:
    """File of a config named as in ``_base_``."""
    package, _, relative = name.partition("::")
    return f"{get_installed_path(package)}/.mim/configs/{relative}"


def made_quick(model: Config) -> None:
    """Swaps a ResNet-50 for a ResNet-18, which neck and head treat alike, and keeps fewer proposals of an RPN."""
    if model.backbone.type == "ResNet" and model.backbone.depth == 50:
        model.backbone.depth = 18
        model.neck.in_channels = [64, 128, 256, 512]
    if "rpn_head" in model:
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 50


def without_downloads(model: Config) -> Config:
    """The same model config without the weights that would come over the network."""
    for part in model.values():
        if isinstance(part, dict):
            part.pop("init_cfg", None)
            without_downloads(part)
    return model
