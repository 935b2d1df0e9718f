"""``mmnetaug.environment``: what is wrong with an installation is said once, with the command that puts it right."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmnetaug import environment

READERS = {"msgspec": "0.22.0", "defusedxml": "0.7.1"}
MAINTAINED = {
    "onedl-mmengine": "0.10.12",
    "onedl-mmcv": "2.3.6",
    "onedl-mmdetection": "3.5.1",
    "onedl-mmpretrain": "1.3.6",
    "torch": "2.13.0+cpu",
    **READERS,
}
ORIGINAL = {
    "mmengine": "0.10.7",
    "mmcv": "2.1.0",
    "mmdet": "3.3.0",
    "mmpretrain": "1.2.0",
    "torch": "2.13.0",
    **READERS,
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Pretend that exactly the given distributions, and every other module that is looked for, are installed."""

    def pretend(distributions: dict[str, str], absent_modules: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(environment, "_installed", distributions.get)
        monkeypatch.setattr(
            environment.importlib.util, "find_spec", lambda name: None if name in absent_modules else object()
        )

    return pretend


@pytest.mark.parametrize("distributions", [MAINTAINED, ORIGINAL], ids=["maintained", "original"])
def test_either_line_will_do(installed, distributions):
    installed(distributions)
    environment.check()


def test_maintained_line_needs_no_pkg_resources(installed):
    installed(MAINTAINED, absent_modules=("pkg_resources",))
    environment.check()


@pytest.mark.parametrize(
    ("base", "change", "absent_modules", "messages"),
    [
        (MAINTAINED, {"onedl-mmcv": None}, (), ['mmcv is not installed: pip install "onedl-mmcv>=']),
        (ORIGINAL, {"mmcv": None}, (), ['mmcv is not installed: pip install "mmcv>=']),
        (MAINTAINED, {"torch": None}, (), ['torch is not installed: pip install "torch>=']),
        (ORIGINAL, {"msgspec": None}, (), ['msgspec is not installed: pip install "msgspec>=']),
        (MAINTAINED, {"defusedxml": None}, (), ['defusedxml is not installed: pip install "defusedxml>=']),
        (ORIGINAL, {"mmdet": "2.28.2"}, (), ['mmdet 2.28.2 is too old: pip install "mmdet>=3.3.0"']),
        (MAINTAINED, {"torch": "1.13.1+cu117"}, (), ["torch 1.13.1+cu117 is too old"]),
        (ORIGINAL, {"mmcv": "2.2.0"}, (), ['mmcv 2.2.0 is too new for mmdet 3.3.0: pip install "mmcv>=2.1.0,<2.2.0"']),
        (
            MAINTAINED,
            {"onedl-mmcv": "2.4.0"},
            (),
            ['onedl-mmcv 2.4.0 is too new for onedl-mmpretrain 1.3.6: pip install "onedl-mmcv>=2.3.0,<2.4.0"'],
        ),
        (
            ORIGINAL,
            {"mmcv": None, "onedl-mmcv": "2.3.6"},
            (),
            ["onedl-mmcv 2.3.6 is too new for mmdet 3.3.0: onedl-mmcv and mmdet are of OpenMMLab's two lines"],
        ),
        (
            MAINTAINED,
            {"mmdet": "3.3.0"},
            (),
            [
                "onedl-mmdetection 3.5.1 and mmdet 3.3.0 are installed over each other",
                "pip uninstall onedl-mmdetection",
            ],
        ),
        (MAINTAINED, {}, ("torchvision",), ["torchvision is not installed"]),
        (ORIGINAL, {}, ("pkg_resources",), ['pip install "setuptools<81"']),
        # everything that is wrong, in one message
        (
            {},
            {},
            ("torchvision",),
            ["mmengine is", "mmcv is", "mmdet is", "mmpretrain is", "torch is", "torchvision is", "make setup"],
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_cure(installed, base, change, absent_modules, messages):
    installed({name: release for name, release in {**base, **change}.items() if release}, absent_modules)
    with pytest.raises(ImportError) as caught:
        environment.check()
    for message in messages:
        assert message in str(caught.value)


def test_both_lines_are_tested_with_the_same_packages_beside_openmmlabs():
    pins = []
    for name in ("requirements.txt", "requirements-original.txt"):
        lines = (Path(environment.__file__).parents[1] / name).read_text().splitlines()
        pinned = {line.partition("#")[0].strip() for line in lines} - {""}
        pins.append({line for line in pinned if not line.startswith(("onedl-", "mm", "setuptools"))})
    assert pins[0] == pins[1]


def test_bounds_are_those_of_the_installed_packages():
    """What this environment's mmdet and mmpretrain say about the releases that they refuse."""
    for module in ("mmdet", "mmpretrain"):
        [name] = [name for name in environment._PROVIDERS[module] if environment._installed(name)]
        package = importlib.import_module(module)
        stated = {
            other: bound
            for other in ("mmcv", "mmengine")
            if (bound := getattr(package, f"{other}_maximum_version", None))
        }
        assert environment._REFUSES.get(name, {}) == stated


# A torchvision whose Python part looks its operator up at import, as the real one does, beside a compiled library
# that loads, or one that does not.
FAKE_TORCHVISION = 'import torch\n\n\n@torch.library.register_fake("torchvision::nms")\ndef nms(*_):\n    return None\n'
LOADS_IT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("environment", {environment!r})
environment = importlib.util.module_from_spec(spec)
spec.loader.exec_module(environment)
environment._problems = list
environment.check()
environment.check()  # a second time changes nothing
assert "torch" not in sys.modules
import torch
if {loads}:
    def load_library(path):  # what a real library does when it is loaded
        global own
        own = torch.library.Library("torchvision", "DEF")
        own.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.ops.load_library = load_library
import torchvision
print(environment._torchvision_schemas is not None)
"""


@pytest.mark.parametrize("loads", [True, False])
def test_operators_are_declared_only_where_torchvision_cannot_load_its_own(tmp_path: Path, loads: bool):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(FAKE_TORCHVISION)
    (package / "_C.so").write_text("no library for this torch")
    script = LOADS_IT.format(loads=loads, environment=environment.__file__)
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(not loads)


def test_import_leaves_standard_output_alone():
    root = Path(environment.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", "import mmnetaug"], cwd=root, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stderr
    assert "OneDL" not in run.stderr


def test_what_an_import_prints_is_passed_on_without_the_notice(monkeypatch, capsys):
    def noisy(name: str) -> None:
        print("Could not import OneDL. Skipping OneDL datasets.\na real problem")
        raise ImportError(name)

    monkeypatch.setattr(environment.importlib, "import_module", noisy)
    with pytest.raises(ImportError):
        environment.import_datasets()
    assert capsys.readouterr() == ("", "a real problem\n")
