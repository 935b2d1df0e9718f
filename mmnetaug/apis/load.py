"""Reads the config of a command line, with the options that change it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction

from mmnetaug.config import nested
from mmnetaug.errors import UserError

from .cli import SECTIONS, check_names, find_config

MMENGINE_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
"""Hooks that Runner.register_default_hooks omits if they are None."""


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config of a tool's arguments and applies ``--cfg-options``, ``--work-dir`` and ``--launcher``.

    This imports MMEngine's reader of configs, but not torch.

    Raises:
        UserError: There is no such file, the config is broken, or an option is misspelt or does not fit it.
    """
    path = find_config(args.config)
    options = argparse.Namespace()
    try:
        cfg = Config.fromfile(path)
        DictAction([], "values")(None, options, args.cfg_options or [])
        cfg.merge_from_dict(options.values)
    except Exception as error:  # a config is a program and may raise anything
        raise UserError(f"config {path} cannot be used: {type(error).__name__}: {error}") from error
    check_names(cfg, SECTIONS)
    hooks = cfg.get("default_hooks") or {}
    for name in [name for name, hook in hooks.items() if hook is None and name not in MMENGINE_HOOKS]:
        del hooks[name]  # default_hooks.NAME=None disables a hook; MMEngine supports that for its own only
    if getattr(args, "work_dir", None):
        cfg.work_dir = args.work_dir
    elif not cfg.get("work_dir"):
        cfg.work_dir = str(Path("work_dirs") / path.stem)
    cfg.launcher = getattr(args, "launcher", "none")
    if cfg.launcher == "pytorch" and "RANK" not in os.environ:
        raise UserError("--launcher pytorch needs processes that torchrun starts: tools/dist_train.sh CONFIG PROCESSES")
    if cfg.launcher != "none":
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
        join_cpu_processes(cfg)
    return cfg


def join_cpu_processes(cfg: Config) -> None:
    """Sets up training by several processes on CPUs, if there is no GPU, for which MMEngine would require GPUs.

    Raises:
        UserError: The launcher is not torchrun.
    """
    import torch  # not at the top, since nothing else here needs it
    from mmengine.device import get_device

    if get_device() != "cpu":
        return
    if cfg.launcher != "pytorch":
        raise UserError("several processes without GPUs are started by torchrun, with --launcher pytorch")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel",
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )


def require_test_data(cfg: Config, path: str) -> None:
    """Raises UserError if a config, at this path, has no test data to measure on."""
    if not cfg.get("test_dataloader"):
        raise UserError(f"{path} has no test_dataloader")


def starts_from(cfg: Config, resumed: str | None) -> list[str]:
    """Checkpoints that training by a config reads: ``load_from``, unless it is resumed, ``init_cfg``'s, a teacher's."""
    found = [] if resumed or not cfg.get("load_from") else [cfg.load_from]
    for part in nested(cfg.get("model")):
        found.append(part.get("checkpoint") if part.get("type") == "Pretrained" else part.get("teacher_checkpoint"))
    return list(filter(None, found))
