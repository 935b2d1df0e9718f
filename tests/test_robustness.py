"""Full and read-only disks, folders that are taken, files that are no networks: one error, and nothing half done."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import make_voc_folder
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from networks import detector_config
from test_tools import CLASSES, DETECTOR, REPO, load_tool, run

from mmnetaug import files
from mmnetaug.analysis.cost import count_cost
from mmnetaug.apis.build import build_model
from mmnetaug.apis.evaluation import replace_network
from mmnetaug.deploy import onnx as deploy_onnx
from mmnetaug.errors import UserError, WriteError
from mmnetaug.files import only_writer, read_log, replaced_when_done

TOOLS = {name: load_tool(name) for name in ("train", "test", "sweep", "compare", "export", "describe", "plot_curves")}


pytestmark = pytest.mark.slow  # most of them need an exported network


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A detector with its weights and data, exported, and a log."""
    place = tmp_path_factory.mktemp("robustness")
    place.chmod(0o755)
    make_voc_folder(place / "data", dict(train=2, val=2), CLASSES)
    (place / "plain.py").write_text(DETECTOR.format(repo=REPO, model=detector_config("resnet18")))
    torch.manual_seed(0)
    model = build_model(Config.fromfile(place / "plain.py")).eval()
    torch.save({"state_dict": model.state_dict()}, place / "tiny.pth")
    deploy_onnx.export_onnx(model, (1, 3, 64, 64), place / "tiny.onnx")
    (place / "run/1/vis_data").mkdir(parents=True)
    (place / "run/1/vis_data/scalars.json").write_text('{"loss": 1, "step": 1}\n')
    return place


# tool, arguments, and the file that will not fit
MEASURED = "{place}/plain.py {place}/tiny.pth --data-root {place}/data"
COLUMN = "--model x {place}/plain.py {place}/tiny.pth --data-root {place}/data"
WRITERS = {
    "train": ("train", "{place}/plain.py --data-root {place}/data --work-dir {out}", r"epoch_1\.pth"),
    "test --out": ("test", f"{MEASURED} --work-dir {{out}} --out {{out}}/x.pkl", "x.pkl"),
    "sweep": ("sweep", f"{COLUMN} --sizes 64 --work-dir {{out}}", "points.json"),
    "compare": ("compare", f"{COLUMN} --images 0 --out {{out}}/x.jpg", "x.jpg"),
    "export --to stock": ("export", f"{MEASURED} --to stock --out {{out}}", "tiny_tiny.pth"),
    "export --to onnx": ("export", f"{MEASURED} --to onnx --out {{out}}", "tiny_tiny.onnx"),
    "export --to int8": ("export", f"{MEASURED} --to int8 --out {{out}}", "tiny_tiny_int8.onnx"),
    "describe --json": ("describe", "{place}/plain.py --data-root {place}/data --json {out}/x.json", "x.json"),
    "plot_curves": ("plot_curves", "{place}/run --keys loss --out {out}/x.png", "x.png"),
}


def arguments(text: str, place: Path, out: Path) -> list[str]:
    return [argument.format(place=place, out=out) for argument in text.split()]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond a size in bytes: as on a full disk, the write fails in the kernel."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_error_and_no_half_file(place, tmp_path, capsys, monkeypatch, writer):
    tool, args, name = WRITERS[writer]
    if tool in ("test", "sweep", "describe"):  # their files are smaller than others that they need
        monkeypatch.setattr(files.os, "fsync", no_room)  # when a disk without quota tells
        size = resource.RLIM_INFINITY
    else:
        size = 60_000 if tool == "train" else 5000
    if writer.endswith("int8"):
        monkeypatch.setattr(
            "mmnetaug.apis.export.export_onnx", lambda *args: shutil.copy(place / "tiny.onnx", args[-1])
        )
        size = (place / "tiny.onnx").stat().st_size + 5000  # room for the float file, but not for its preparation
    with largest_file(size):
        assert run(TOOLS[tool], *arguments(args, place, tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert len(re.findall("^error: ", error, re.M)) == 1 and "Traceback" not in error, error
    assert re.search(rf"^error: .*{name}.* cannot be written: (File too large|No space)", error, re.M), error
    assert {path.name for path in (tmp_path / "out").glob("*") if path.is_file()} <= {
        *(".lock", "plain.py"),  # MMEngine's copy of the config
        *(("tiny_tiny.onnx",) if writer.endswith("int8") else ()),
    }


def no_room(file: int) -> None:
    raise OSError(errno.ENOSPC, "")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_the_storage_s_errors_are_the_user_s_wherever_they_come_from(place, tmp_path, capsys, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr("mmnetaug.apis.describe.inspect_network", fail)
    assert run(TOOLS["describe"], place / "plain.py") == 1
    assert f"error: {error}" in capsys.readouterr().err


@contextlib.contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """As a user without rights in a folder, which root has everywhere."""
    is_root = os.geteuid() == 0
    for parent in [folder, *folder.parents]:
        if is_root and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    folder.chmod(0o555)
    try:
        if is_root:
            os.seteuid(65534)
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_read_only_folder_is_one_error_before_the_work(place, tmp_path, capsys, writer):
    tool, args, _ = WRITERS[writer]
    args = arguments(args, place, tmp_path / "locked/out")
    (tmp_path / "locked").mkdir()
    with nobody(tmp_path / "locked"):
        assert run(TOOLS[tool], *args) == 1
    error = capsys.readouterr().err
    assert len(re.findall("^error: ", error, re.M)) == 1 and "Traceback" not in error, error
    assert re.search("^error: .*Permission denied", error, re.M), error
    assert not list((tmp_path / "locked").iterdir())


def test_read_only_data_behind_links(place, tmp_path):
    """The data set's folder, its parts and each image are links; nothing of it can be written, or is by root."""
    shutil.copytree(place / "data", tmp_path / "store")
    data = tmp_path / "data"
    (data / "JPEGImages").mkdir(parents=True)
    for image in (tmp_path / "store/JPEGImages").iterdir():
        (data / "JPEGImages" / image.name).symlink_to(image)
    for name in ("Annotations", "ImageSets"):
        (data / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "linked").symlink_to(data)
    paths = sorted(path for path in tmp_path.rglob("*") if not path.is_symlink())
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = [(path, path.stat().st_mtime_ns) for path in paths]
    try:
        options = ["--work-dir", tmp_path / "work", "--cfg-options", "train_cfg.max_epochs=1"]
        assert run(TOOLS["train"], place / "plain.py", "--data-root", tmp_path / "linked", *options) == 0
        assert before == [(path, path.stat().st_mtime_ns) for path in paths]
    finally:
        for path in paths:  # pytest removes them
            path.chmod(0o755)
    assert (tmp_path / "work/epoch_1_tiny.pth").is_file()


# --- two runs at once -------------------------------------------------------------------------------------------------

FORK = multiprocessing.get_context("fork")  # a process that has imported everything


def hold(folder: Path, ready: Connection) -> None:
    with only_writer(folder):
        ready.send("held")
        ready.recv()  # until it is killed


@contextlib.contextmanager
def another_run(folder: Path) -> Iterator[multiprocessing.Process]:
    """Another process that writes to a folder, and is killed at the end."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(folder, theirs))
    process.start()
    assert ours.recv() == "held"
    try:
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("tool", ["train", "sweep"])
def test_two_runs_do_not_write_to_one_folder(place, tmp_path, capsys, monkeypatch, tool):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    _, args, _ = WRITERS[tool]
    taken = tmp_path / "work"
    with another_run(taken):
        assert run(TOOLS[tool], *arguments(args, place, taken)) == 1
    assert re.search(f"^error: another run is writing to {taken}: .*--work-dir", capsys.readouterr().err, re.M)
    assert [path.name for path in taken.iterdir()] == [".lock"]


def test_a_killed_run_leaves_its_folder_free(tmp_path):
    with another_run(tmp_path) as process:
        (tmp_path / f".{process.pid}.epoch_1.pth").write_bytes(b"half")
    with only_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with only_writer(tmp_path):
        pass


def test_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe"):
        with pytest.raises(WriteError, match="it is no regular file"), replaced_when_done(path):
            pytest.fail("it was opened")


# --- logs that were cut -----------------------------------------------------------------------------------------------


def test_the_line_that_a_kill_cut_is_left_out(tmp_path):
    log = tmp_path / "1/vis_data/scalars.json"
    log.parent.mkdir(parents=True)
    whole = b'{"loss": 1, "step": 1}\n{"loss": 0.5, "step": 2}\n'
    for length in range(len(whole) + 1):
        log.write_bytes(whole[:length])
        expected = [json.loads(line) for line in whole.splitlines()]
        assert read_log(tmp_path) == expected[: (length >= 22) + (length >= len(whole) - 1)]
    for bad in (b'{"loss": 1\n{}\n', b"[1]\n", b"\xff\n", b"NaNsense\n"):
        log.write_bytes(bad)
        with pytest.raises(UserError, match=r"scalars\.json, line 1"):
            read_log(tmp_path)


# --- networks that are none -------------------------------------------------------------------------------------------


@given(data=st.data())
def test_a_damaged_onnx_file_runs_or_is_one_error(place, data):
    content = bytearray((place / "tiny.onnx").read_bytes())
    # the graph stands in front of the weights, or behind them
    places = st.one_of(st.integers(0, 3000), st.integers(len(content) - 3000, len(content) - 1))
    for position, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        content[position] = byte
    path = place / "damaged.onnx"
    path.write_bytes(content[: data.draw(st.sampled_from([None, len(content) // 2, 100]))])
    with contextlib.suppress(UserError):
        deploy_onnx.OnnxNetwork(path, (1, 3, 64, 64))(np.zeros((1, 3, 64, 64), np.float32))


class TwoInputs(torch.nn.Module):
    def forward(self, a, b):
        return a + b


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (TwoInputs(), (torch.zeros(1, 3, 64, 64),) * 2, "not one batch of images"),
        (torch.nn.Flatten(), (torch.zeros(2, 3),), "not one batch of images"),
        (torch.nn.ReLU(), (torch.zeros(1, 3, 64, 64, dtype=torch.int32),), "not one batch of images"),
        (torch.nn.ReLU(), (torch.zeros(1, 3, 64, 64),), "that is another network"),
    ],
)
def test_an_onnx_file_of_something_else(place, tmp_path, capsys, model, inputs, message):
    torch.onnx.export(model, inputs, dynamo=True, verbose=False).save(str(tmp_path / "other.onnx"))
    args = ["--data-root", place / "data", "--work-dir", tmp_path / "work"]
    assert run(TOOLS["test"], place / "plain.py", tmp_path / "other.onnx", *args) == 1
    assert re.search(f"^error: .*{message}", capsys.readouterr().err, re.M)


# --- devices ----------------------------------------------------------------------------------------------------------


def test_a_model_on_the_cpu_asks_nothing_of_a_gpu(place, monkeypatch):
    """Beside a GPU, on which nothing may be touched."""
    model = build_model(Config.fromfile(place / "plain.py")).eval()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("the GPU was asked"))
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("the GPU was touched"))
    assert count_cost(model, (1, 3, 64, 64)).macs > 0
    replace_network(model, deploy_onnx.OnnxNetwork(place / "tiny.onnx"), (64, 64))


def test_what_is_exported_is_traced_where_it_is(place, tmp_path, monkeypatch):
    """On a device that is not the CPU: here one without memory."""
    devices = []
    monkeypatch.setattr(
        torch.onnx, "export", lambda raw, images, **kwargs: devices.append(images[0].device) or Nothing()
    )
    deploy_onnx.export_onnx(
        build_model(Config.fromfile(place / "plain.py")).eval().to("meta"), (1, 3, 64, 64), tmp_path
    )
    assert devices == [torch.device("meta")]


class Nothing:
    def save(self, path: str) -> None:
        pass
