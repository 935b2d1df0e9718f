"""Learning curves: accuracy on training images by the pipeline of validation, logged and plotted."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from data_fixtures import make_class_folders
from mmengine.config import Config
from mmengine.registry import init_default_scope
from test_tools import load_tool, run

from mmnetaug.apis.build import build_runner
from mmnetaug.apis.plot_curves import read_curve
from mmnetaug.engine.train_accuracy import TrainAccuracyHook

pytestmark = pytest.mark.slow

REPO = Path(__file__).parents[1]
plot_curves = load_tool("plot_curves")


def test_wrapped_training_images_and_no_validation(tmp_path):
    make_class_folders(tmp_path, train=3)
    cfg = Config.fromfile(REPO / "configs/classification/cifar10/mobilenet_v2_tiny_cifar10.py")
    init_default_scope(cfg.default_scope)
    for loader, prefix in ((cfg.train_dataloader, "train"), (cfg.val_dataloader, "val")):
        loader.dataset.update(data_root=str(tmp_path), data_prefix=prefix)
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=5, dataset=cfg.train_dataloader.dataset)
    cfg.work_dir = str(tmp_path / "run")
    runner = build_runner(cfg)
    hook = TrainAccuracyHook()
    hook.before_train(runner)
    measured = hook._loader.dataset
    assert len(measured) == 6
    assert [step["type"] for step in cfg.val_dataloader.dataset.pipeline] == [
        type(step).__name__ for step in measured.pipeline.transforms
    ]
    cfg.val_dataloader.dataset = dict(type="ConcatDataset", datasets=[cfg.val_dataloader.dataset])
    cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[cfg.train_dataloader.dataset])
    runner.cfg = cfg
    hook.before_train(runner)
    [part] = hook._loader.dataset.datasets
    assert len(part) == 6
    assert repr(part.pipeline) == repr(measured.pipeline)
    runner.register_hook(hook)
    runner.register_hook(dict(type="EMAHook", priority=49))  # as mmdet's configs have it
    order = [type(one).__name__ for one in runner.hooks]
    assert order.index("TrainAccuracyHook") < order.index("EMAHook") < order.index("LoggerHook")
    cfg.val_evaluator = [dict(type="CocoMetric", ann_file="val.json")]
    with pytest.raises(ValueError, match="boxes of the validation images"):
        hook.before_train(runner)
    runner.cfg.val_dataloader = None
    TrainAccuracyHook().before_train(runner)


@pytest.fixture
def work_dir(tmp_path) -> Path:
    """Of a run whose validation images are its training images with the two classes exchanged."""
    make_class_folders(tmp_path / "data", train=6)
    (tmp_path / "data/exchanged").mkdir()
    for name, other in (("cat", "dog"), ("dog", "cat")):
        (tmp_path / "data/exchanged" / name).symlink_to(tmp_path / "data/train" / other)
    cfg = Config.fromfile(REPO / "configs/classification/cifar10/mobilenet_v2_tiny_cifar10.py")
    cfg.model.head.num_classes, cfg.train_cfg.max_epochs = 2, 2
    cfg.work_dir, cfg.default_hooks.checkpoint = str(tmp_path / "run"), None
    for loader, prefix in ((cfg.train_dataloader, "train"), (cfg.val_dataloader, "exchanged")):
        loader.batch_size = 4
        loader.dataset.update(data_root=str(tmp_path / "data"), data_prefix=prefix)
    init_default_scope(cfg.default_scope)
    build_runner(cfg).train()
    return tmp_path / "run"


def test_training_images_are_seen_as_validation_images_are(work_dir, tmp_path, capsys):
    [path] = work_dir.glob("*/vis_data/scalars.json")
    validations = [line for line in map(json.loads, path.read_text().splitlines()) if "accuracy/top1" in line]
    assert len(validations) == 2
    for line in validations:
        assert line["train_accuracy/top1"] == pytest.approx(100 - line["accuracy/top1"])
    if importlib.util.find_spec("tensorboard"):
        assert list(work_dir.glob("*/vis_data/events.out.tfevents*"))

    # a run that was resumed has two logs: the later counts
    later = work_dir / "29991231_235959/vis_data/scalars.json"
    later.parent.mkdir(parents=True)
    later.write_text(json.dumps({"accuracy/top1": 77.0, "step": 2}) + "\n")
    assert read_curve(work_dir, "accuracy/top1") == {1: validations[0]["accuracy/top1"], 2: 77.0}
    out = tmp_path / "curves.png"
    assert run(plot_curves, work_dir, work_dir, "--legend", "one", "other", "--out", out) == 0
    assert out.stat().st_size > 5000
    for args, message in (
        (
            [work_dir, "--keys", "acuracy", "--out", out],
            "nothing in the log .* is called acuracy; there are accuracy/top1",
        ),
        ([tmp_path, "--out", out], "is no work directory"),
        ([work_dir, "--legend", "a", "b", "--out", out], "1 runs need as many labels"),
    ):
        assert run(plot_curves, *args) == 1
        assert re.search(message, capsys.readouterr().err)
