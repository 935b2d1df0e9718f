"""Command lines are read, and the files that they name looked for, before torch or OpenMMLab is imported."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.runner import Runner

from mmnetaug.apis.cli import SECTIONS

REPO = Path(__file__).parents[1]
TOOLS = sorted(path.stem for path in (REPO / "tools").glob("*.py"))
HEAVY = ("torch", "torchvision", "mmcv", "mmdet", "mmpretrain", "cv2", "matplotlib")
READS_CONFIGS = ("mmengine", "numpy")

# runs command lines one after the other in a process of its own
RUNS = """
import contextlib, io, json, runpy, sys
lines, heavy = json.load(sys.stdin)
for tool, *args in lines:
    sys.argv = [tool, *args]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            if tool == "mmnetaug":
                runpy.run_module(tool, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(tool, run_name="__main__")
        except SystemExit as end:
            code = end.code
    said = dict(code=code, out=out.getvalue(), err=err.getvalue())
    print(json.dumps(said | dict(imported=[name for name in heavy if name in sys.modules])))
"""


def results(lines: list[list[str]]) -> list[dict]:
    """What each command line exits with and writes, and which heavy modules were imported until then."""
    run = subprocess.run(
        [sys.executable, "-c", RUNS],
        input=json.dumps([lines, HEAVY + READS_CONFIGS]),
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def tool(name: str) -> str:
    return str(REPO / f"tools/{name}.py")


def test_help_imports_nothing_heavy():
    lines = [[tool(name), "--help"] for name in TOOLS]
    lines += [["mmnetaug", "--help"], ["mmnetaug", "train", "--help"], [tool("configs")]]
    found = results(lines)
    assert len(found) == len(lines) >= 14
    for line, result in zip(lines, found, strict=True):
        assert (result["code"], result["imported"], result["err"]) == (0, [], ""), line
        assert result["out"].startswith("usage: ") or line == [tool("configs")], line


@pytest.fixture
def place(tmp_path) -> Path:
    for name in ("plain.py", "tiny.pth", "image.jpg"):  # which nothing reads
        (tmp_path / name).touch()
    return tmp_path


PART = ["model.init_cfg.type=Pretrained", "model.init_cfg.checkpoint=absent.pth"]
ABSENT = {
    "a config": (["train", "{place}/absent.py"], "no config file at .*absent.py"),
    "a config of several": (
        ["sweep", "--model", "x", "yolov3_mbv3_w035_vok", "y.pth", "--sizes", "64", "--work-dir", "x"],
        "no config file at yolov3_mbv3_w035_vok, .*; close to it are yolov3_mbv3_w035_voc",
    ),
    "a checkpoint to start from": (
        ["train", "{place}/plain.py", "--cfg-options", "load_from='{place}/absent.pth'"],
        "no checkpoint at .*absent.pth",
    ),
    "a checkpoint of a part": (
        ["train", "{place}/plain.py", "--resume", "--cfg-options", *PART],
        "no checkpoint at absent.pth",
    ),
    "a teacher's checkpoint": (
        ["train", "rtmdet_mbv3_w035_kd_custom", "--data-root", "{place}", "--resume"],
        "no checkpoint at work_dirs/rtmdet_mbv3_w100_custom/epoch_100_tiny.pth",
    ),
    "a checkpoint to resume": (["train", "{place}/plain.py", "--resume", "absent.pth"], "no checkpoint at absent.pth"),
    "a checkpoint to test": (["test", "{place}/plain.py", "~/absent.pth"], "no checkpoint at ~/absent.pth"),
    "a checkpoint to export": (["export", "{place}/plain.py", "absent.pth"], "no checkpoint at absent.pth"),
    "a checkpoint to convert": (
        ["convert_checkpoint", "{place}/plain.py", "absent.pth", "--out", "x.pth"],
        "no checkpoint at absent.pth",
    ),
    "a checkpoint of several": (
        ["compare", "--model", "x", "{place}/plain.py", "absent.pth", "--images", "0", "--out", "x.jpg"],
        "no checkpoint at absent.pth",
    ),
    "an exported file": (["test", "{place}/plain.py", "absent.onnx"], "no file at absent.onnx"),
    "an image": (
        ["predict", "{place}/plain.py", "{place}/tiny.pth", "{place}/image.jpg", "{place}/absent.jpg"],
        "nothing to predict on: .*absent.jpg",
    ),
    "data": (
        ["train", "yolov3_mbv3_w035_netaug_custom", "--data-root", "{place}/absent"],
        "no data: there is no folder .*absent.*Pascal VOC:",
    ),
    "a part of a config": (
        ["describe", "{place}/plain.py", "--cfg-options", "modle.x=1", "a.b=2"],
        "modle is no part of a config: did you mean model[?]",
    ),
    "a folder for figures": (["describe", "{place}/plain.py", "--json", "{place}/plain.py/x"], ".*cannot be written"),
}


def test_what_is_absent_is_told_before_anything_heavy_is_imported(place):
    lines = [[arg.format(place=place) for arg in line] for line, _ in ABSENT.values()]
    found = results([[tool(name), *args] for name, *args in lines])
    for (what, (_, message)), result in zip(ABSENT.items(), found, strict=True):
        assert (result["code"], set(result["imported"]) & set(HEAVY), result["out"]) == (1, set(), ""), (what, result)
        assert re.match(f"error: {message}", result["err"], re.DOTALL), (what, result)


@pytest.mark.parametrize(
    "line",
    [
        ["train", "--resume", "--cfg-options", "load_from=absent.pth"],  # which the last checkpoint replaces
        ["train", "--cfg-options", "load_from=None"],
        ["train", "--cfg-options", "load_from=https://example.com/absent.pth"],
        ["describe", "--cfg-options", "load_from=absent.pth"],  # which it does not read
        ["describe", "--data-root", "absent"],
    ],
    ids=" ".join,
)
def test_what_need_not_exist_stops_nothing(line, place, capsys, monkeypatch):
    from test_tools import load_tool

    name, *args = line
    begun = []
    monkeypatch.setattr(f"mmnetaug.apis.{name}.{name}", lambda args, cfg: begun.append(args.config))
    assert load_tool(name).main([str(place / "plain.py"), *args]) == 0
    assert begun == [str(place / "plain.py")]
    assert capsys.readouterr().err == ""


def test_an_option_without_a_value_is_one_line():
    [result] = results([[tool("train"), "x.py", "--cfg-options", "a=1", "b"]])
    assert (result["code"], result["imported"]) == (2, [])
    assert result["err"].endswith("error: argument --cfg-options: must be KEY=VALUE, got b\n")


LATER = """
import sys, mmnetaug
assert "torch" not in sys.modules
from mmengine import registry
names = {"MODELS": "NetAug", "DATASETS": "DigitScenes", "TRANSFORMS": "DetectionMixUp", "HOOKS": "CPUTuningHook"}
names |= {"OPTIM_WRAPPERS": "NetAugOptimWrapper", "VISBACKENDS": "TensorboardIfInstalled"}
for name, kind in names.items():
    assert getattr(registry, name).get(f"mmnetaug.{kind}").__name__ == kind
for name in mmnetaug.__all__:
    getattr(mmnetaug, name)
"""
AT_ONCE = """
import importlib, mmnetaug
from mmdet.models import SSDHead  # some environments need mmnetaug before it, which finds no mmdet then
importlib.reload(mmnetaug)
from mmnetaug.registry import HOOKS, MODELS
assert "NetAug" in MODELS.module_dict and "CPUTuningHook" in HOOKS.module_dict
assert SSDHead.loss_cls is None  # which mmdet forgets
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [LATER, AT_ONCE], ids=["later", "at once"])
def test_importing_the_package_registers_everything(script):
    run = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_parts_of_a_config_are_the_arguments_of_the_runner():
    assert set(SECTIONS) == set(inspect.signature(Runner.__init__).parameters) - {"self"}
