"""Builds the model or the Runner of a config, and reports errors of the config to the user."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmnetaug.config import with_preprocessor, without
from mmnetaug.elastic import TraceError
from mmnetaug.errors import UserError

LISTS = ("System environment:", "Config:\n", "Hooks will be executed")


def build_model(cfg: Config) -> nn.Module:
    """Builds the model of a config as MMEngine's Runner does, on the CPU, without initialising its weights.

    Raises:
        UserError: The config has an unknown type or invalid arguments.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    if not cfg.get("model"):
        raise UserError("this config has no model")
    model = with_preprocessor(cfg.model, cfg.get("data_preprocessor"))
    with reported_as_user_error("the model of this config cannot be built"):
        return MODELS.build(model)


def without_teacher(cfg: Config) -> Config:
    """A copy of a config whose model learns from no teacher, which is needed in training alone."""
    cfg = copy.deepcopy(cfg)
    cfg.model = without(cfg.get("model"), "Distilled")
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Builds MMEngine's Runner, which builds the model.

    Raises:
        UserError: The config has an unknown type or invalid arguments.
    """
    if (cfg.get("default_scope") or "") == "mmpretrain":
        # mmpretrain's tools set this
        for split in ("train", "val", "test"):
            if cfg.get(f"{split}_dataloader"):
                cfg[f"{split}_dataloader"].setdefault("collate_fn", dict(type="default_collate"))
    with reported_as_user_error("this config cannot be set up"):
        return TerseRunner.from_cfg(cfg)


class TerseRunner(Runner):
    """MMEngine's Runner, which writes what it lists at the start to the log file, and not to the terminal."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Builds the logger; see ``Runner``."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:  # not the file's, which is a subclass
                handler.addFilter(lambda record: not record.getMessage().lstrip("\n-").startswith(LISTS))
        return logger


@contextlib.contextmanager
def reported_as_user_error(what: str) -> Iterator[None]:
    """Turns errors of builders for unknown types or invalid arguments of a config into :class:`UserError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, TraceError) as error:
        raise UserError(f"{what}: {type(error).__name__}: {error}") from error
