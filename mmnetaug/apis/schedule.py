"""Sets how long a config trains."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from mmnetaug.config import as_list
from mmnetaug.errors import UserError


def set_epochs(cfg: Config, epochs: int) -> None:
    """Sets the number of epochs, and stretches or shrinks learning rate schedules that count epochs.

    Schedules that count iterations stay, such as a warm-up of 1000 iterations.

    Args:
        cfg: A whole config, changed in place.
        epochs: At least 1.

    Raises:
        UserError: The config's training counts iterations.
    """
    before = cfg.train_cfg.get("max_epochs")
    if before is None:
        raise UserError("--epochs needs a config whose training counts epochs (train_cfg.max_epochs)")

    def scaled(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [scaled(item) for item in value]
        return max(1, round(value * epochs / before)) if value else value

    cfg.train_cfg.max_epochs = epochs
    for scheduler in as_list(cfg.get("param_scheduler")):
        if scheduler.get("by_epoch", True):
            for key in {"begin", "end", "T_max", "milestones"} & scheduler.keys():
                scheduler[key] = scaled(scheduler[key])
