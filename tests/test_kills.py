"""Kills every writer in the middle of its work, again and again: no half file under its name, and a rerun completes it.

A kill hits a child process at the n-th change that it makes to a file: before a rename, a removal or a new folder, and
in the middle of what is written to a file that it has opened. The numbers are drawn by Hypothesis.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pickle
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import make_voc_folder
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from networks import detector_config
from PIL import Image
from test_tools import CLASSES, DETECTOR, REPO, load_tool, run
from torch import nn

from mmnetaug.analysis.tradeoff import Point
from mmnetaug.apis import sweep
from mmnetaug.apis.build import build_model
from mmnetaug.apis.cli import run_tool
from mmnetaug.checkpoint import find_last_checkpoint, unpickling
from mmnetaug.engine.hooks import tiny_path
from mmnetaug.files import only_writer

sys.path.append(str(REPO))

from benchmarks import study
from benchmarks.study_runs import EXPERIMENTS

pytestmark = pytest.mark.slow

NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # it would take minutes
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

export, compare, test, plot_curves = (load_tool(name) for name in ("export", "compare", "test", "plot_curves"))


def in_child(work: Callable[[Path], None], folder: Path, killed_at: int | None = None) -> int | None:
    """Run ``work`` in a process that is killed at one of its changes below ``folder``.

    Returns:
        How many changes it made; None if it was killed.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            changes = watch(killed_at, str(folder))
            work(folder)
            os.write(writing, str(len(changes)).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    os.close(writing)
    with open(reading) as answer:
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return None
        assert status == 0
        return int(answer.read())


def watch(killed_at: int | None, folder: str) -> list[str]:
    """Note this process's changes of files below ``folder``, and kill it at one of them."""
    changes: list[str] = []

    def hook(event: str, args: tuple) -> None:
        if not (event in CHANGES or (event == "open" and args[2] & WRITES)):
            return
        if not isinstance(args[0], str | Path) or not str(args[0]).startswith(folder):
            return
        changes.append(event)
        if len(changes) - 1 == killed_at:
            if event == "open":  # in the middle of what it is about to write
                os.write(os.open(args[0], (args[2] & ~os.O_EXCL & ~os.O_RDWR) | os.O_WRONLY, 0o644), b"ha")
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return changes


def read_pixels(path: Path) -> bytes:
    return np.asarray(Image.open(path)).tobytes()


def read_weights(path: Path) -> dict[str, list]:
    return {name: value.tolist() for name, value in torch.load(path, weights_only=True)["state_dict"].items()}


READERS = {
    ".json": lambda path: json.loads(path.read_text()),
    ".csv": lambda path: list(csv.DictReader(path.read_text().splitlines(), strict=True)),
    ".png": read_pixels,
    ".jpg": read_pixels,
    ".pkl": lambda path: len(pickle.loads(path.read_bytes())),
    ".py": lambda path: Config.fromfile(path).pretty_text,
    ".pth": read_weights,
}


def contents(folder: Path) -> dict[str, object]:
    """What the files under final names hold, read to the end; of a half file, the reader's error."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith(".") or "log" in path.relative_to(folder).parts:
            continue
        found[str(path.relative_to(folder))] = READERS[path.suffix](path)
    return found


# --- what is written --------------------------------------------------------------------------------------------------


def write_figures(folder: Path) -> None:
    args = argparse.Namespace(json=str(folder / "figures.json"))
    assert run_tool(lambda args: {"numbers": list(range(1000))}, args) == 0


def write_sweep(folder: Path) -> None:
    """Two networks at two sizes, measured by nothing."""

    def measure(cfg, state, size, log):
        return "AP50", Point(size, float(state["w"]), size**2, 3, 4, 1.0)

    pipeline = [dict(type="Resize", scale=64), dict(type="PackDetInputs")]
    data = dict(dataset=dict(pipeline=pipeline))
    cfg = Config(dict(model={}, test_dataloader=data, val_dataloader=data, test_evaluator={}))
    sweep.measure = measure
    networks = [(cfg, {"w": torch.tensor(value)}) for value in (0.5, 0.6)]
    args = argparse.Namespace(train=False, work_dir=str(folder), title="")
    with only_writer(folder):
        sweep.measure_all(args, ["a", "b"], [32, 64], [cfg, cfg], networks, ["data", "data"])


def write_record(folder: Path) -> None:
    """Rows of the study's table; what is there is kept."""
    study.DOCS = folder
    experiment = EXPERIMENTS[0]
    for seed in range(3):
        if (experiment.name, seed) not in study.read_record():
            row = dict(experiment=experiment.name, seed=seed, settings=study.settings(experiment), machine="a")
            study.keep(row | dict(test=1.5 + seed, train=None, minutes=1.0, test_curve={1: 2.0}, sizes={}))


def write_curves(folder: Path) -> None:
    log = Path(tempfile.mkdtemp()) / "1/vis_data/scalars.json"
    log.parent.mkdir(parents=True)
    log.write_text('{"loss": 1, "step": 1}\n{"loss": 0.5, "step": 2}\n{"los')  # of a killed run, too
    assert run(plot_curves, log.parents[2], "--keys", "loss", "--legend", "x", "--out", folder / "curves.png") == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A detector, its weights and its data, for the writers that need them."""
    place = tmp_path_factory.mktemp("kills")
    make_voc_folder(place / "data", dict(train=2, val=2), CLASSES)
    (place / "plain.py").write_text(DETECTOR.format(repo=REPO, model=detector_config("resnet18")))
    torch.manual_seed(0)
    torch.save({"state_dict": build_model(Config.fromfile(place / "plain.py")).state_dict()}, place / "tiny.pth")
    return place


def write_export(folder: Path, place: Path) -> None:
    args = [place / "plain.py", place / "tiny.pth", "--data-root", place / "data", "--to", "stock", "--out", folder]
    assert run(export, *args) == 0


def write_picture(folder: Path, place: Path) -> None:
    args = ["--model", "x", place / "plain.py", place / "tiny.pth", "--data-root", place / "data", "--images", 0]
    assert run(compare, *args, "--out", folder / "x.jpg") == 0


def write_predictions(folder: Path, place: Path) -> None:
    args = [place / "plain.py", place / "tiny.pth", "--data-root", place / "data", "--work-dir", folder / "log"]
    assert run(test, *args, "--out", folder / "x.pkl", "--json", folder / "x.json") == 0


@settings(max_examples=max(settings.default.max_examples // 4, 1), phases=NO_SHRINKING)
@given(data=st.data())
@pytest.mark.parametrize("write", [write_figures, write_sweep, write_record, write_curves])
def test_a_killed_writer_leaves_no_half_file(write, data):
    kill_and_rerun(write, data)


@settings(max_examples=max(settings.default.max_examples // 25, 1), phases=NO_SHRINKING)
@given(data=st.data())
@pytest.mark.parametrize("write", [write_export, write_picture, write_predictions])
def test_a_killed_tool_leaves_no_half_file(write, place, data):
    kill_and_rerun(lambda folder: write(folder, place), data)


def kill_and_rerun(write: Callable[[Path], None], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as killed:
        changes = in_child(write, Path(whole))
        expected = contents(Path(whole))
        assert expected
        kills = data.draw(st.lists(st.integers(0, changes - 1), min_size=1, max_size=3))
        for count, number in enumerate(kills):
            done = in_child(write, Path(killed), killed_at=number)
            assert done is None or count  # a rerun may have less to do
            contents(Path(killed))  # raises at a half file
        in_child(write, Path(killed))
        assert contents(Path(killed)) == expected


# --- training ---------------------------------------------------------------------------------------------------------


class Line(BaseModel):
    """A network of one layer, and so small that a run takes a fraction of a second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs: torch.Tensor, mode: str = "tensor"):
        out = self.layer(inputs)
        return {"loss": (out - 1).square().mean()} if mode == "loss" else [out]


class Error(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results.append(float(data_samples[0].mean()))

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {"error": abs(results[0] - 1)}


def train(folder: Path) -> Runner:
    """Four epochs of four iterations, three to a step; the best and the last two checkpoints are kept."""
    data = torch.utils.data.TensorDataset(torch.arange(24.0).view(8, 3) / 24)
    loader = dict(dataset=data, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False))
    collate = dict(collate_fn=lambda items: {"inputs": torch.stack([item[0] for item in items])})
    source = find_last_checkpoint(folder)
    checkpoint = dict(type="mmnetaug.TinyCheckpointHook", interval=1, max_keep_ckpts=2, save_best="error", rule="less")
    runner = Runner(
        Line(),
        work_dir=str(folder),
        train_dataloader=loader | collate | dict(batch_size=2),
        val_dataloader=loader | collate | dict(batch_size=8),
        train_cfg=dict(by_epoch=True, max_epochs=4),
        val_cfg={},
        val_evaluator=[Error()],
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9), accumulative_counts=3),
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[dict(type="EMAHook", momentum=0.1)],
        randomness=dict(seed=0),
        load_from=source,
        resume=source is not None,
        log_level="ERROR",
    )
    with unpickling(anything=True):
        runner.train()
    average = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model
    end = {**runner.model.state_dict(), **average.state_dict()}
    print(json.dumps({name: value.tolist() for name, value in end.items()}), file=(folder / "end.txt").open("w"))


def check_checkpoints(folder: Path) -> set[str]:
    """Every checkpoint is whole, and a twin holds its checkpoint's weights."""
    found = {path.name for path in folder.glob("*.pth") if not path.name.startswith(".")}
    for path in (folder / name for name in found if not name.endswith("_tiny.pth")):
        state = torch.load(path, weights_only=False)["state_dict"]
        twin = tiny_path(path)
        if twin.exists() and twin.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            tiny = torch.load(twin, weights_only=True)["state_dict"]
            assert tiny.keys() == state.keys() and all(tiny[name].equal(state[name]) for name in tiny)
    for name in (name for name in found if name.endswith("_tiny.pth")):
        torch.load(folder / name, weights_only=True)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert in_child(train, folder) > 80
    return folder


@settings(max_examples=max(settings.default.max_examples // 2, 1), phases=NO_SHRINKING)
@given(kills=st.lists(st.integers(0, 80), min_size=1, max_size=3))
def test_a_killed_training_ends_as_an_undisturbed_one(undisturbed, kills):
    with tempfile.TemporaryDirectory() as killed:
        folder = Path(killed)
        for number in kills:
            in_child(train, folder, killed_at=number)
            check_checkpoints(folder)
        (folder / "end.txt").unlink(missing_ok=True)
        in_child(train, folder)
        assert (folder / "end.txt").read_text() == (undisturbed / "end.txt").read_text()
        # the best may be another, or two: MMEngine does not repeat a validation that was killed
        found = check_checkpoints(folder)
        assert found >= {name for name in check_checkpoints(undisturbed) if name.startswith("epoch")}
        assert all(name.endswith("_tiny.pth") for name in found if name.startswith("best"))


def test_of_the_best_checkpoint_the_twin_alone_is_kept(undisturbed):
    [best] = (path.name for path in undisturbed.glob("best*"))
    assert re.fullmatch(r"best_error_epoch_\d_tiny\.pth", best)
    kept = torch.load(undisturbed / best, weights_only=True)["state_dict"]
    epoch = torch.load(undisturbed / best.removeprefix("best_error_"), weights_only=True)["state_dict"]
    assert kept.keys() == epoch.keys() and all(kept[name].equal(epoch[name]) for name in kept)


def test_the_kills_hit_half_written_files(tmp_path):
    """The harness finds a writer that writes to the final name: it leaves half a file at the first kill."""

    def careless(folder: Path) -> None:
        (folder / "figures.json").write_text("[1, 2]")

    assert in_child(careless, tmp_path, killed_at=0) is None
    with pytest.raises(json.JSONDecodeError):
        contents(tmp_path)
    assert in_child(careless, tmp_path, killed_at=1) == 1
    assert contents(tmp_path) == {"figures.json": [1, 2]}
