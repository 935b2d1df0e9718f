"""The work of ``tools/train.py``: checks config, data and checkpoints, then trains."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmnetaug.checkpoint import ReadOnce, find_last_checkpoint
from mmnetaug.config import as_list, type_name
from mmnetaug.datasets import check_data, decoded_once, fill_config, find_unlisted
from mmnetaug.engine import BestPictureHook
from mmnetaug.engine.augmented_pass import unwrapped
from mmnetaug.errors import UserError
from mmnetaug.files import lies_in, only_writer
from mmnetaug.models.tensor_mode import is_detector

from .build import build_runner
from .cli import AUTO, BACKENDS, is_main_process
from .input_size import set_input_size
from .plot_curves import plot_run
from .preflight import (
    check_classes,
    check_pretrained,
    check_resumable,
    check_training,
    check_weights,
    inspect_network,
)

AMP_TWINS = {"OptimWrapper": "AmpOptimWrapper", "NetAugOptimWrapper": "mmnetaug.NetAugAmpOptimWrapper"}


def train(args: argparse.Namespace, cfg: Config) -> None:
    """Checks a config, then trains it."""
    if absent := [key for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper") if not cfg.get(key)]:
        raise UserError(f"{args.config} cannot be trained: it has no {', '.join(absent)}")
    gc.disable()  # until the first iteration: annotations are millions of objects, which searches would visit in vain
    try:
        # a second run would write the same checkpoints
        with only_writer(cfg.work_dir) if is_main_process() else contextlib.nullcontext():
            check_and_run(cfg, args)
    finally:
        gc.enable()


def check_and_run(cfg: Config, args: argparse.Namespace) -> None:
    """Everything that writes to the work directory."""
    with decoded_once():
        fill_config(cfg, args.data_root)
        apply_arguments(cfg, args)
        reports = check_data(cfg) if is_main_process() else []
        unlisted = find_unlisted(cfg) if is_main_process() else []

    runner = build_runner(cfg)
    model = unwrapped(runner.model)
    check_training(cfg, model)
    classes = reports[0].classes if reports else ()
    lines = [
        *check_pretrained(model, args.checkpoints, args.trust_checkpoint, args.allow_partial, classes),
        *check_start(cfg, model, args, classes),
    ]
    lines = [str(inspect_network(cfg, model)), *lines, *(f"data: {line}" for line in (*reports, *unlisted))]
    runner.logger.info("preflight:\n" + "\n".join(lines))
    runner.register_hook(EndStart(args.checkpoints))
    if is_detector(model) and cfg.get("val_dataloader"):
        runner.register_hook(BestPictureHook())
    runner.train()
    if is_main_process() and (curves := plot_run(Path(cfg.work_dir))):
        runner.logger.info(f"learning curves: {curves}")


def apply_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Changes a config as the command line says."""
    if args.size:
        set_input_size(cfg, args.size, ("train", "val", "test"))
    if args.epochs is not None:
        set_epochs(cfg, args.epochs)
    if args.batch_size is not None:
        cfg.train_dataloader.batch_size = args.batch_size
    if args.resume:
        set_resume(cfg, args.resume)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        use_scaled_lr(cfg)
    for package in BACKENDS:
        if getattr(args, package):
            log_to(cfg, package)
    use_tiny_checkpoints(cfg)


class EndStart(Hook):
    """Frees the memory of loaded checkpoints, and has garbage collected again."""

    def __init__(self, checkpoints: ReadOnce) -> None:
        self.checkpoints = checkpoints

    def before_train(self, runner: Runner) -> None:
        self.checkpoints.forget()
        gc.enable()


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


def set_resume(cfg: Config, source: str) -> None:
    """Resumes from a checkpoint or, for :data:`AUTO`, from the last one in the work directory, if there is one."""
    if source == AUTO:
        source = find_last_checkpoint(Path(cfg.work_dir))
        if source is None:
            print(f"nothing to resume in {cfg.work_dir}: starting from the beginning")
            return
    cfg.resume, cfg.load_from = True, source


def check_start(cfg: Config, model: nn.Module, args: argparse.Namespace, classes: Sequence[str]) -> list[str]:
    """Checks the checkpoint that a run resumes or starts from; returns lines for the log.

    The run's own checkpoints may hold any object, others only if the user trusts them. The classes must be the same to
    resume, but not to start from the weights.
    """
    path = cfg.get("load_from")
    if path is None:
        return []
    checkpoint = args.checkpoints.read(path, args.trust_checkpoint or lies_in(path, cfg.work_dir))
    if not cfg.get("resume"):
        return [check_weights(model, checkpoint, path, partial=args.allow_partial)]
    check_resumable(checkpoint, path)
    check_classes(checkpoint, classes, path)
    line = check_weights(model, checkpoint, path, complete=True)
    largest = {name: value.shape for name, value in model.state_dict().items()}
    if any(value.shape != largest.get(name, value.shape) for name, value in checkpoint["state_dict"].items()):
        raise UserError(
            f"{path} is from plain training, and its optimizer state lacks the additional channels: start from its "
            "weights with --cfg-options load_from=..."
        )
    return [line]


def log_to(cfg: Config, package: str) -> None:
    """Adds a visualisation backend of MMEngine, whose package must be installed."""
    if not importlib.util.find_spec(package):
        raise UserError(f"--{package} needs the package {package}: pip install {package}")
    kind = BACKENDS[package][0]
    visualizer = dict(cfg.get("visualizer") or dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")]))
    given = as_list(visualizer.get("vis_backends"))
    if kind not in map(type_name, given):
        others = [
            backend for backend in given if (type_name(backend), package) != ("TensorboardIfInstalled", "tensorboard")
        ]
        cfg.visualizer = {**visualizer, "vis_backends": [*others, dict(type=kind)]}


def use_amp(cfg: Config) -> None:
    """Replaces the optimizer wrapper by its mixed-precision variant, with NetAug if it had NetAug."""
    name = type_name(cfg.optim_wrapper) or "OptimWrapper"
    if name not in (*AMP_TWINS, *(twin.rpartition(".")[2] for twin in AMP_TWINS.values())):
        raise UserError(f"--amp knows no mixed-precision twin of optim_wrapper.type {name}: set one in the config")
    if name in AMP_TWINS:
        cfg.optim_wrapper.type = AMP_TWINS[name]
    if type_name(cfg.optim_wrapper) == "AmpOptimWrapper" and get_device() not in ("cuda", "npu", "mlu", "musa"):
        raise UserError(
            f"mixed precision without NetAug needs a GPU: MMEngine's AmpOptimWrapper does not run on {get_device()}"
        )


def use_scaled_lr(cfg: Config) -> None:
    """Enables MMEngine's scaling of the learning rate by batch size."""
    if not (cfg.get("auto_scale_lr") or {}).get("base_batch_size"):
        raise UserError("--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in the config")
    cfg.auto_scale_lr.enable = True


def use_tiny_checkpoints(cfg: Config) -> None:
    """Replaces MMEngine's checkpoint hook, but no other, by the one that also writes tiny checkpoints."""
    hooks = dict(cfg.get("default_hooks") or {})
    hook = hooks.get("checkpoint", dict(type="CheckpointHook", interval=1))  # MMEngine's default; None: no checkpoints
    if hook and type_name(hook) == "CheckpointHook":
        cfg.default_hooks = {**hooks, "checkpoint": {**hook, "type": "mmnetaug.TinyCheckpointHook"}}
