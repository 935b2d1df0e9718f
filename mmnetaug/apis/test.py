"""The work of ``tools/test.py``: evaluates a checkpoint or an exported file."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmnetaug.config import as_list, type_name, without_netaug
from mmnetaug.datasets import check_data, fill_config
from mmnetaug.engine.augmented_pass import unwrapped
from mmnetaug.errors import UserError
from mmnetaug.files import lies_in, replaced_when_done

from .build import build_runner, without_teacher
from .cli import EXPORTED, is_main_process
from .evaluation import running_exported
from .input_size import set_input_size
from .load import require_test_data
from .preflight import check_classes, check_weights


def test(args: argparse.Namespace, cfg: Config) -> dict[str, Any]:
    """Checks the checkpoint and the data, then evaluates; returns the figures."""
    require_test_data(cfg, args.config)
    fill_config(cfg, args.data_root)
    if args.size:
        set_input_size(cfg, args.size, ("test",))
    trained_in, cfg.work_dir = cfg.work_dir, str(Path(cfg.work_dir) / "test")  # keeps the config of training
    exported = args.checkpoint.endswith(EXPORTED)
    cfg = without_teacher(cfg)
    if exported:
        cfg.model = without_netaug(cfg.model)
    cfg.load_from, cfg.resume = None if exported else args.checkpoint, False
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    reports = check_data(cfg, ("test",)) if is_main_process() else []

    with contextlib.ExitStack() as stack:
        if args.out:
            if not args.out.endswith((".pkl", ".pickle")):
                raise UserError(f"--out must end with .pkl, got {args.out}")
            # the main process writes the predictions of all ranks
            path = stack.enter_context(replaced_when_done(args.out)) if is_main_process() else args.out
            dump_predictions(cfg, str(path))
        runner = build_runner(cfg)
        model = unwrapped(runner.model)
        if exported:
            stack.enter_context(running_exported(cfg, model, args.checkpoint, args.tflite_python))
            line = f"network: {args.checkpoint}, decoded by {type(model).__name__}"
        else:
            trusted = args.trust_checkpoint or lies_in(args.checkpoint, trained_in)
            weights = args.checkpoints.read(args.checkpoint, trusted)
            line = check_weights(model, weights, args.checkpoint, complete=True)
            meta = getattr(runner.test_dataloader.dataset, "metainfo", {})
            check_classes(weights, meta.get("classes") or (), args.checkpoint)
        runner.logger.info("\n".join([line, *(f"data: {report}" for report in reports)]))
        metrics = runner.test()
    return {"config": args.config, "checkpoint": args.checkpoint, "metrics": metrics}


def draw_predictions(cfg: Config, folder: str) -> None:
    """Enables the visualisation hook of the config."""
    hook = (cfg.get("default_hooks") or {}).get("visualization") or {}
    folder = str(Path(folder).resolve())  # mmdet repeats a relative path for every image
    if type_name(hook) == "DetVisualizationHook":
        hook.update(draw=True, test_out_dir=folder)
    elif type_name(hook) == "VisualizationHook":
        hook.update(enable=True, out_dir=folder, interval=1)
    else:
        raise UserError("--show-dir needs a DetVisualizationHook or VisualizationHook as default_hooks.visualization")


def dump_predictions(cfg: Config, path: str) -> None:
    """Adds the metric that saves predictions."""
    kind = "mmdet.DumpDetResults" if cfg.get("default_scope") == "mmdet" else "DumpResults"
    cfg.test_evaluator = [*as_list(cfg.test_evaluator), dict(type=kind, out_file_path=path)]
