"""The wheel: its command works in a folder that holds nothing, without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from data_fixtures import make_voc_folder
from mmengine.config import Config

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


@pytest.mark.slow
def test_describe_train_and_test_by_the_names_of_configs(installed, tmp_path):
    """``describe`` prints JSON alone. Its figures are the paper's network with our head: 345 M MACs on VOC at 416."""
    data, folder = make_voc_folder(tmp_path / "data", dict(train=4, test=2)), tmp_path / "empty"
    folder.mkdir()
    figures = json.loads(command(installed, folder, "describe", "yolov3_mbv3_w035_netaug_voc", "--json", "-"))
    assert figures["config"] == "yolov3_mbv3_w035_netaug_voc"
    assert figures["macs"] == pytest.approx(345e6, rel=0.01)
    assert figures["input_shape"] == [1, 3, 416, 416]
    assert figures["params"] == 895345
    stem = figures["groups"][0]
    assert stem == dict(name="backbone.stem.conv", role="width", base_width=8, widths=[8, 16, 24], held_reason=None)
    options = ["--data-root", data, "--size", 64]
    short = ["--cfg-options", "train_cfg.max_epochs=1", "param_scheduler=None"]
    for split in ("train", "val"):
        short += [f"{split}_dataloader.num_workers=0", f"{split}_dataloader.persistent_workers=False"]
    command(installed, folder, "train", "yolov3_mbv3_w035_netaug_custom", *options, *short)
    [tiny] = folder.glob("work_dirs/yolov3_mbv3_w035_netaug_custom/epoch_1_tiny.pth")
    tested = json.loads(command(installed, folder, "test", "yolov3_mbv3_w035_custom", tiny, *options, "--json", "-"))
    assert 0 <= tested["metrics"]["pascal_voc/mAP"] <= 1
    assert {path.name for path in folder.iterdir()} == {"work_dirs"}


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
