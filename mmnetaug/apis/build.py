"""Builds the model or MMEngine's Runner of a config; errors in the config are reported to the user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmnetaug.elastic import TraceError
from mmnetaug.errors import UserError


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config as MMEngine's Runner does, on the CPU, its weights not yet initialised.

    Raises:
        UserError: The config names something unknown, or gives it arguments that it does not take.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    if not cfg.get("model"):
        raise UserError("this config has no model")
    model = dict(cfg.model)
    if cfg.get("data_preprocessor"):
        model.setdefault("data_preprocessor", cfg.data_preprocessor)
    with reported_as_user_error("the model of this config cannot be built"):
        return MODELS.build(model)


def build_runner(cfg: Config) -> Runner:
    """Build MMEngine's Runner, and with it the model.

    Raises:
        UserError: The config names something unknown, or gives it arguments that it does not take.
    """
    if (cfg.get("default_scope") or "") == "mmpretrain":
        # mmpretrain's configs leave this to its tools
        for split in ("train", "val", "test"):
            if cfg.get(f"{split}_dataloader"):
                cfg[f"{split}_dataloader"].setdefault("collate_fn", dict(type="default_collate"))
    with reported_as_user_error("this config cannot be set up"):
        return Runner.from_cfg(cfg)


@contextlib.contextmanager
def reported_as_user_error(what: str) -> Iterator[None]:
    """Report what builders raise at an unknown type or a wrong argument in a config as a :class:`UserError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, TraceError) as error:
        raise UserError(f"{what}: {type(error).__name__}: {error}") from error
