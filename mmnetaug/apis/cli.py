"""The command line of the tools: arguments, reading a config, reporting errors, writing results."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device

from mmnetaug.checkpoint import ReadOnce, tensors_only, trusted_load
from mmnetaug.datasets import fill_config
from mmnetaug.errors import DataError, UserError
from mmnetaug.files import STORAGE_ERRORS, replaced_when_done

from .options import check_options

MMENGINE_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
"""Hooks that Runner.register_default_hooks omits if they are None."""


def config_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments of all tools that take a config."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="config file, or the name of one that comes with mmnetaug")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="override values of the config"
    )
    parser.add_argument("--data-root", metavar="PATH", help="folder of the data, in place of the config's data_root")
    return parser


def at_least_one(text: str) -> int:
    """An integer of 1 or more, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def add_size_argument(parser: argparse.ArgumentParser) -> None:
    """``--size``, which means the same in every tool."""
    parser.add_argument(
        "--size",
        type=at_least_one,
        metavar="N",
        help="height and width of the network's input, in place of the config's",
    )


def add_tflite_argument(parser: argparse.ArgumentParser) -> None:
    """``--tflite-python``, of tools that run .tflite files."""
    parser.add_argument(
        "--tflite-python",
        metavar="PATH",
        help="interpreter of LiteRT's environment (docs/deploy.md), for .tflite; default: this one, if it has LiteRT",
    )


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of tools that run MMEngine's Runner."""
    parser.add_argument("--work-dir", help="folder of logs and checkpoints (default: ./work_dirs/<config name>)")
    add_size_argument(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="job launcher")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="let checkpoints from elsewhere run code on this machine when they are loaded (they may hold any pickle)",
    )
    # torch.distributed.launch passes this one; torchrun sets the environment instead
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)


def shipped_configs() -> dict[str, Path]:
    """The configs that come with mmnetaug, without base configs: name -> path."""
    folder = (Path(__file__).parents[1] / ".mim/configs").resolve()
    return {path.stem: path for path in sorted(folder.rglob("*.py")) if "_base_" not in str(path.relative_to(folder))}


def find_config(name: str) -> Path:
    """Finds a config by its path or, if there is no such file, by the name of one that comes with mmnetaug.

    Raises:
        UserError: There is no such config.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_configs()
    if (stem := name.removesuffix(".py")) in shipped:
        return shipped[stem]
    close = difflib.get_close_matches(Path(stem).name, shipped, n=3)
    hint = f"; close to it are {', '.join(close)}" if close else ""
    raise UserError(f"no config file at {name}, and none of that name comes with mmnetaug{hint}")


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config of a tool's arguments and applies ``--cfg-options``, ``--work-dir`` and ``--launcher``.

    Raises:
        UserError: There is no such file, the config is broken, or an option is misspelt or does not fit it.
    """
    path = find_config(args.config)
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(args.cfg_options or {})
    except Exception as error:  # a config is a program and may raise anything
        raise UserError(f"config {path} cannot be used: {type(error).__name__}: {error}") from error
    check_options(cfg)
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
        if get_device() == "cpu":
            join_cpu_processes(cfg)
    return cfg


def join_cpu_processes(cfg: Config) -> None:
    """Sets up training by several processes on CPUs, for which MMEngine would require GPUs.

    Raises:
        UserError: The launcher is not torchrun.
    """
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


def fill_data(cfg: Config, args: argparse.Namespace) -> None:
    """Applies ``--data-root`` to a config, and fills in layout and classes if the config requests that.

    Raises:
        DataError: The data are missing.
        UserError: The config has no data root.
    """
    try:
        fill_config(cfg, args.data_root)
    except DataError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def load_test_config(args: argparse.Namespace, path: str) -> Config:
    """Reads one of several configs to be measured, with the options and the data root that apply to all of them.

    Raises:
        UserError: It cannot be used, or has no test data.
        DataError: The data are missing.
    """
    cfg = load_config(argparse.Namespace(config=path, cfg_options=args.cfg_options))
    fill_data(cfg, args)
    if not cfg.get("test_dataloader"):
        raise UserError(f"{path} has no test_dataloader")
    return cfg


def lies_in(path: str, folder: str) -> bool:
    """Whether ``path`` is a file below ``folder``, with links resolved."""
    return Path(path).is_file() and Path(path).resolve().is_relative_to(Path(folder).resolve())


def is_main_process() -> bool:
    """Whether this is the main process; works before the process group exists."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def run_tool(tool: Callable[[argparse.Namespace], dict[str, Any] | None], args: argparse.Namespace) -> int:
    """Runs a tool, writes the figures it returns as ``--json`` requests, and reports user errors without a traceback.

    With ``--json -`` only the figures are written to standard output, and everything that is printed goes to standard
    error. All code that loads checkpoints unpickles only tensors and plain types, unless ``--trust-checkpoint`` is
    given.

    Args:
        tool: The function to run. ``args.checkpoints`` is the :class:`ReadOnce` for checkpoints that MMEngine loads.
        args: Arguments of the command line.

    Returns:
        The exit code: 0, or 1 after a user error. Any other exception passes through with its traceback.
    """
    trusted = getattr(args, "trust_checkpoint", False)
    try:
        with trusted_load() if trusted else tensors_only(), ReadOnce() as args.checkpoints:
            _run_and_write(tool, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in STORAGE_ERRORS and not isinstance(error, PermissionError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run_and_write(tool: Callable[[argparse.Namespace], dict[str, Any] | None], args: argparse.Namespace) -> None:
    target = getattr(args, "json", None)
    if target == "-":
        with contextlib.redirect_stdout(sys.stderr):
            figures = tool(args)
        if is_main_process():
            sys.stdout.write(_as_json(figures))
    elif target and is_main_process():
        with replaced_when_done(target) as temporary:  # first, so that an unwritable path fails at once
            temporary.write_text(_as_json(tool(args)))
    else:
        tool(args)


def _as_json(figures: dict[str, Any] | None) -> str:
    return json.dumps(figures, indent=2, default=float) + "\n"
