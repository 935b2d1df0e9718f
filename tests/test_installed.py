"""The wheel: its command and ``docs/quick_start.ipynb`` work in a folder that holds nothing, without the repository."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import nbformat
import onnx
import pytest
import torch
from mmengine.config import Config
from nbclient import NotebookClient

from mmnetaug.apis.cli import find_config
from mmnetaug.errors import UserError

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that the wheel was installed into."""
    place = tmp_path_factory.mktemp("installed")
    packaged = ("mmnetaug", "configs", "tools", "setup.py", "pyproject.toml", "README.md", "LICENSE", "model-index.yml")
    for name in packaged:  # a copy, since building leaves files beside the sources
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        copy(REPO / name, place / "source" / name, **({"symlinks": True} if (REPO / name).is_dir() else {}))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    wheels = ["wheel", *offline, "--no-build-isolation", "--wheel-dir", place, place / "source"]
    subprocess.run([*pip, *wheels], check=True)
    [wheel] = place.glob("mmnetaug-*.whl")
    subprocess.run([*pip, "install", *offline, "--target", place / "site", wheel], check=True)
    shutil.rmtree(place / "source")
    return place / "site"


def command(installed: Path, folder: Path, *args: object) -> str:
    """Standard output of ``mmnetaug ARGS``, run in ``folder``."""
    run = subprocess.run(
        [str(installed / "bin/mmnetaug"), *map(str, args)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


FEW = "SCENES = {'train': 16, 'test': 4}\n%env EPOCHS=1"  # as someone in a hurry would edit it; nothing is learnt


@pytest.mark.slow
def test_the_quick_start_runs_from_top_to_bottom(installed, tmp_path, monkeypatch):
    """It describes, trains, tests, predicts and exports by the names of configs, and leaves behind what it promises."""
    notebook = nbformat.read(REPO / "docs/quick_start.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), "stored with outputs"
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source = FEW
    monkeypatch.setenv("PATH", os.pathsep.join([str(installed / "bin"), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(installed))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder = tmp_path / "empty"
    folder.mkdir()
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(folder)}}).execute()

    tiny = torch.load(folder / "run/epoch_1_tiny.pth", weights_only=True)["state_dict"]
    exported = torch.load(folder / "export/epoch_1_tiny.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(exported[name], value) for name, value in tiny.items())
    onnx.checker.check_model(str(folder / "export/epoch_1_tiny.onnx"))
    assert cv2.imread(str(folder / "predictions/000001_test_00000.png")).shape[:2] == (160, 160)
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert 0 <= metrics["pascal_voc/mAP"] <= 1
    with open(folder / "predictions/predictions.csv", newline="") as file:
        assert next(csv.reader(file)) == ["file", "class", "score", "x", "y", "width", "height"]
    shown = [kind for cell in notebook.cells for out in cell.get("outputs", ()) for kind in out.get("data", {})]
    assert [kind for kind in shown if kind.startswith("image/")] == ["image/jpeg", "image/png"]
    assert {path.name for path in folder.iterdir()} == {"data", "run", "metrics.json", "predictions", "export"}


@pytest.mark.slow
def test_describe_prints_json_alone(installed, tmp_path):
    """Its figures are the paper's network with our head: 345 M MACs on VOC at 416."""
    figures = json.loads(command(installed, tmp_path, "describe", "yolov3_mbv3_w035_voc", "--json", "-"))
    assert figures["config"] == "yolov3_mbv3_w035_voc" and figures["input_shape"] == [1, 3, 416, 416]
    assert figures["macs"] == pytest.approx(345e6, rel=0.01) and figures["params"] == 895345
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_config_of_ones_own_inherits_from_an_installed_one(installed, tmp_path):
    [line] = command(installed, tmp_path, "configs", "yolov3_mbv3_w035_netaug_voc").splitlines()
    name, path = line.split()
    assert name == "yolov3_mbv3_w035_netaug_voc" and Path(path).is_relative_to(installed)
    (tmp_path / "mine.py").write_text(f"_base_ = {path!r}\ntrain_cfg = dict(max_epochs=3)\n")
    cfg = Config.fromfile(tmp_path / "mine.py")
    assert cfg.model.type == "mmnetaug.NetAug" and cfg.train_cfg.max_epochs == 3


def test_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = REPO / "configs/yolov3_mbv3_w035_netaug_voc.py"
    assert find_config("yolov3_mbv3_w035_netaug_voc") == find_config("yolov3_mbv3_w035_netaug_voc.py") == path
    own = tmp_path / "yolov3_mbv3_w035_netaug_voc.py"
    own.write_text("")
    assert find_config(own.name) == Path(own.name)  # a file goes before a name
    with pytest.raises(UserError, match="close to it are yolov3_mbv3_w035_netaug_voc"):
        find_config("yolov3_mbv3_netaug_vok")
    names = [path.stem for path in (REPO / "configs").rglob("*.py") if "_base_" not in str(path)]
    assert len(set(names)) == len(names)
