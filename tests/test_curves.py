"""Learning curves: accuracy on training images by the pipeline of validation, logged and plotted."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import mmpretrain
import pytest
from data_fixtures import make_class_folders
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.visualization import Visualizer

from mmnetaug.cli import build_runner

REPO = Path(__file__).parents[1]
PLOT = Path(mmpretrain.__file__).parent / ".mim/tools/analysis_tools/analyze_logs.py"


@pytest.fixture
def logs(tmp_path, monkeypatch) -> list[dict]:
    """What a run logs whose validation images are its training images."""
    monkeypatch.setattr(Visualizer, "_instance_dict", type(Visualizer._instance_dict)())
    make_class_folders(tmp_path / "data", train=6)
    cfg = Config.fromfile(REPO / "configs/classification/cifar10/mobilenet_v2_tiny_cifar10.py")
    cfg.model.head.num_classes, cfg.train_cfg.max_epochs = 2, 2
    cfg.work_dir, cfg.default_hooks.checkpoint = str(tmp_path / "run"), None
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = 4
        loader.dataset.update(data_root=str(tmp_path / "data"), data_prefix="train")
    init_default_scope(cfg.default_scope)
    build_runner(cfg).train()
    [path] = tmp_path.glob("run/*/vis_data/scalars.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_images_are_seen_as_validation_images_are(logs, tmp_path):
    validations = [line for line in logs if "accuracy/top1" in line]
    assert len(validations) == 2
    for line in validations:
        assert line["train_accuracy/top1"] == line["accuracy/top1"]
    if importlib.util.find_spec("tensorboard"):
        assert list(tmp_path.glob("run/*/vis_data/events.out.tfevents*"))
    if not PLOT.is_file():
        pytest.skip("mmpretrain is installed without its tools")
    [log] = tmp_path.glob("run/*/vis_data/scalars.json")
    keys = ["accuracy/top1", "train_accuracy/top1"]
    out = tmp_path / "curves.png"
    command = [sys.executable, PLOT, "plot_curve", log, log, "--keys", *keys, "--legend", *"abcd", "--out", out]
    subprocess.run(command, check=True, env={"MPLBACKEND": "Agg", "PYTHONPATH": str(REPO), "PATH": ""})
    assert out.stat().st_size > 5000
