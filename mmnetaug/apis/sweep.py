"""The work of ``tools/sweep.py``: measures networks at several input sizes."""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from mmnetaug.analysis.cost import count_cost, find_input_shape
from mmnetaug.analysis.memory import kilobytes, peak_memory
from mmnetaug.analysis.operators import record
from mmnetaug.analysis.tradeoff import Point, macs_saved, plot_tradeoff
from mmnetaug.checkpoint import find_last_checkpoint
from mmnetaug.datasets import check_data, fill_config
from mmnetaug.deploy.latency import measure_latency
from mmnetaug.engine.hooks import tiny_path
from mmnetaug.errors import UserError
from mmnetaug.files import only_writer, replaced_when_done

from .build import reported_as_user_error
from .cli import TOOLS
from .evaluation import build_tiny, evaluate, load_tiny
from .input_size import set_input_size
from .load import require_test_data

COLUMNS = ("network", *Point.__dataclass_fields__)


def sweep(args: argparse.Namespace, *configs: Config) -> dict[str, Any]:
    """Measures all points, then writes the table, the plot and the savings; returns the figures."""
    wanted = 2 if args.train else 3
    if any(len(model) != wanted for model in args.model):
        raise UserError(f"--model takes {'LABEL CONFIG' if args.train else 'LABEL CONFIG CHECKPOINT'}")
    labels = [model[0] for model in args.model]
    if len(set(labels)) < len(labels):
        raise UserError(f"every network needs a different label: {', '.join(labels)}")
    sizes = sorted(set(args.sizes))
    for (_, path, *_), cfg in zip(args.model, configs, strict=True):  # fail before hours are spent
        require_test_data(cfg, path)
        fill_config(cfg, args.data_root)
        for size in sizes:
            set_input_size(copy.deepcopy(cfg), size, ("train", "val", "test") if args.train else ("val", "test"))
    reports = [check_data(cfg, ("test",))[0] for cfg in configs]
    networks = []
    if not args.train:
        networks = [
            load_tiny(cfg, model[2], args.trust_checkpoint, report.classes)
            for cfg, model, report in zip(configs, args.model, reports, strict=True)
        ]

    with only_writer(args.work_dir):  # a second sweep would overwrite the points of this one
        return measure_all(args, labels, sizes, configs, networks, list(map(str, reports)))


def measure_all(
    args: argparse.Namespace,
    labels: list[str],
    sizes: list[int],
    configs: Sequence[Config],
    networks: list[tuple[Config, dict[str, Tensor]]],
    data: list[str],
) -> dict[str, Any]:
    """Measures missing points, and writes everything; the lists hold one item per network."""
    folder = Path(args.work_dir)
    # finished points, by a hash of everything that they depend on
    kept: dict[str, dict] = json.loads(path.read_text()) if (path := folder / "points.json").is_file() else {}
    curves: dict[str, list[Point]] = {label: [] for label in labels}
    metric, done, spent, total = "", 0, 0.0, len(labels) * len(sizes)
    for size in sizes:
        for index, label in enumerate(labels):
            cfg = copy.deepcopy(configs[index])
            start = time.time()
            if args.train:
                set_input_size(cfg, size, ("train", "val", "test"))
                cfg, state = train(cfg, folder / label / str(size))
            else:
                cfg, state = networks[index]
                cfg = copy.deepcopy(cfg)
            set_input_size(cfg, size)
            key = fingerprint(cfg, state, size, data[index])
            if key in kept:
                note, total = "kept", total - 1
            else:
                metric, point = measure(cfg, state, size, folder / "log")
                kept[key] = {"network": label, "metric": metric, **asdict(point)}
                with replaced_when_done(path) as temporary:
                    temporary.write_text(json.dumps(kept, indent=2))
                spent, done = spent + time.time() - start, done + 1
                note = f"{total - done} points to go, {spent / done * (total - done):.0f} s left"
            metric, point = kept[key]["metric"], Point(**{name: kept[key][name] for name in Point.__dataclass_fields__})
            print(
                f"{label} at {size}: {metric} {point.accuracy:.4f}, {point.macs / 1e6:.1f} M MACs ({note})", flush=True
            )
            curves[label].append(point)

    savings = {label: macs_saved(curves[labels[0]], curves[label]) for label in labels[1:]}
    print(table(curves, metric))
    for label, saving in savings.items():
        text = saving or "cannot be compared: there is no accuracy that both were measured at"
        print(f"{label} against {labels[0]}: {text}")
    figures: dict[str, Any] = {
        "metric": metric,
        "latency": f"one image, CPU time of one thread, median; PyTorch {torch.__version__}, ONNX Runtime",
        "points": [{"network": label, **asdict(point)} for label, points in curves.items() for point in points],
        "macs_saved": {label: saving and saving.figures() for label, saving in savings.items()},
    }
    with replaced_when_done(folder / "sweep.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(figures["points"])
    with replaced_when_done(folder / "sweep.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
    with replaced_when_done(folder / "sweep.png") as temporary:
        plot_tradeoff(curves, metric, temporary, args.title)
    print(f"written: {folder}/sweep.csv, sweep.json, sweep.png")
    return figures


def fingerprint(cfg: Config, state: dict[str, Tensor], size: int, data: str) -> str:
    """Hash of everything that a point depends on: weights, size, test settings, and the report on the data."""
    means = cfg.get("data_preprocessor")
    settings = (COLUMNS, size, data, cfg.model, means, cfg.test_dataloader, cfg.test_evaluator)
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in state.items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def measure(cfg: Config, state: dict[str, Tensor], size: int, log_dir: Path) -> tuple[str, Point]:
    """Measures one network at one size; returns the name of the metric and the point."""
    model = build_tiny(cfg, state)
    shape = find_input_shape(cfg, model, (size, size))
    with reported_as_user_error(f"{type(model).__name__} cannot be measured at {size}"):
        cost = count_cost(model, shape)
        peak = peak_memory(record(model, shape)).bytes
    metric, accuracy = evaluate(cfg, state, str(log_dir), (size, size))
    return metric, Point(size, accuracy, cost.macs, cost.params, peak, **measure_latency(model, shape))


def train(cfg: Config, work_dir: Path) -> tuple[Config, dict[str, Tensor]]:
    """Trains a config with ``tools/train.py``, or resumes that; returns the plain config and tiny weights."""
    asked, finished = work_dir.with_name(f"{work_dir.name}.py"), work_dir / "finished"
    if work_dir.exists() and not (asked.is_file() and asked.read_text() == cfg.pretty_text):
        raise UserError(f"{work_dir} holds a training by another config: remove it, or name another --work-dir")
    if not finished.is_file():
        with replaced_when_done(asked) as temporary:
            temporary.write_text(cfg.pretty_text)
        command = [sys.executable, str(TOOLS / "train.py"), str(asked), "--resume"]
        print(f"training in {work_dir}", flush=True)
        if launch([*command, "--work-dir", str(work_dir)]):
            raise UserError(f"training in {work_dir} failed, see its log")
    checkpoint = find_last_checkpoint(work_dir)
    if checkpoint is None:
        raise UserError(f"training in {work_dir} left no checkpoint: set default_hooks.checkpoint in its config")
    finished.touch()
    tiny = tiny_path(checkpoint)
    # this run's own checkpoints may hold any pickle
    return load_tiny(cfg, str(tiny) if tiny.is_file() else checkpoint, trusted=True)


def launch(command: list[str]) -> int:
    """Runs a command in a subprocess; returns its exit code."""
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode


def table(curves: dict[str, list[Point]], metric: str) -> str:
    """Formats all points as text."""
    width = max(len("network"), *map(len, curves))
    lines = [
        f"{'network':<{width}}  {'size':>5}  {metric:>7}  {'M MACs':>8}  {'M params':>8}  {'int8 peak':>10}  "
        f"{'PyTorch ms':>10}  {'ONNX ms':>7}  {'int8 ms':>7}"
    ]
    for label, points in curves.items():
        lines += [
            f"{label:<{width}}  {point.size:>5}  {point.accuracy:>7.4f}  {point.macs / 1e6:>8.2f}  "
            f"{point.params / 1e6:>8.3f}  {kilobytes(point.peak_memory):>10}  {point.latency_ms:>10.1f}"
            + "".join(f"  {'-' if ms is None else f'{ms:.1f}':>7}" for ms in (point.onnx_ms, point.onnx_int8_ms))
            for point in points
        ]
    return "\n".join(lines)
