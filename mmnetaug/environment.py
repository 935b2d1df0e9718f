"""Checks the installed packages at ``import mmnetaug``, before torch or anything of OpenMMLab is imported.

OpenMMLab comes in two lines with the same module names: the original one (mmengine, mmcv, mmdet, mmpretrain) and the
maintained one (onedl-mmengine, onedl-mmcv, onedl-mmdetection, onedl-mmpretrain). Either works, but not one installed
over the other, since they overwrite each other's files. All problems are reported in one message, instead of by the
first import that fails.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import io
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.library import Library

# module -> the distributions that provide it (the maintained line first) and their oldest supported releases
_PROVIDERS = {
    "mmengine": {"onedl-mmengine": "0.10.8", "mmengine": "0.10.0"},
    "mmcv": {"onedl-mmcv": "2.3.0", "mmcv": "2.1.0"},
    "mmdet": {"onedl-mmdetection": "3.5.0", "mmdet": "3.3.0"},
    "mmpretrain": {"onedl-mmpretrain": "1.3.0", "mmpretrain": "1.2.0"},
    "torch": {"torch": "2.6.0"},
    "msgspec": {"msgspec": "0.19.0"},
    "defusedxml": {"defusedxml": "0.7.1"},
}

# distribution -> the first releases of other modules with which its import fails
_REFUSES = {
    "mmdet": {"mmcv": "2.2.0", "mmengine": "1.0.0"},
    "mmpretrain": {"mmcv": "2.4.0", "mmengine": "1.0.0"},
    "onedl-mmpretrain": {"mmcv": "2.4.0", "mmengine": "1.0.0"},
}

_torchvision_schemas: Library | None = None
"""Keeps the declarations of :func:`_declare_torchvision_operators` alive, which are removed with this object."""


def check() -> None:
    """Checks the installed packages, and has a problem of importing torchvision worked around when it is imported.

    Raises:
        ImportError: A package is missing, too old, or installed over its twin; the message says what to do for each.
    """
    problems = _problems()
    if problems:
        raise ImportError(
            f"mmnetaug cannot run in this environment ({sys.prefix}):\n"
            + "".join(f"  * {problem}\n" for problem in problems)
            + "A working environment: `make setup`, or the commands at the top of requirements.txt."
        )
    if "torchvision" not in sys.modules and not any(isinstance(one, _BeforeTorchvision) for one in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing: it is asked for torchvision before it is imported, and declares its operators if necessary."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare_torchvision_operators()


def _problems() -> list[str]:
    """Problems of the installed packages, each with the command that solves it."""
    problems = []
    found = {
        module: {name: release for name in providers if (release := _installed(name))}
        for module, providers in _PROVIDERS.items()
    }
    # recommend the line that is installed, or the maintained one if none is
    original = found["mmengine"].keys() == {"mmengine"}
    for module, providers in _PROVIDERS.items():
        installed = found[module]
        if len(installed) > 1:
            names = " and ".join(f"{name} {release}" for name, release in installed.items())
            problems.append(
                f"{names} are installed over each other: both are the module {module}. "
                f"Remove both (pip uninstall {' '.join(installed)}), then install one of them again."
            )
        elif not installed:
            name = list(providers)[-1 if original else 0]
            problems.append(f'{module} is not installed: pip install "{name}>={providers[name]}"')
        else:
            [(name, release)] = installed.items()
            if _numbers(release) < _numbers(providers[name]):
                problems.append(f'{name} {release} is too old: pip install "{name}>={providers[name]}"')
    bounds = [(user, *bound) for user, refused in _REFUSES.items() if _installed(user) for bound in refused.items()]
    for user, module, bound in bounds:
        for name, release in found[module].items():
            oldest = _PROVIDERS[module][name]
            cure = f'pip install "{name}>={oldest},<{bound}"'
            if _numbers(oldest) >= _numbers(bound):
                cure = f"{name} and {user} are of OpenMMLab's two lines, install all packages of one"
            if _numbers(release) >= _numbers(bound):
                problems.append(f"{name} {release} is too new for {user} {_installed(user)}: {cure}")
    if original and importlib.util.find_spec("pkg_resources") is None:
        problems.append('mmengine needs pkg_resources, which setuptools has dropped: pip install "setuptools<81"')
    if importlib.util.find_spec("torchvision") is None:
        problems.append(
            "torchvision is not installed, and mmpretrain imports it: "
            "pip install the release made for your torch, with --no-deps so that torch stays as it is"
        )
    return problems


def _installed(distribution: str) -> str | None:
    """The installed version of ``distribution``, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _numbers(release: str) -> tuple[int, ...]:
    """``"2.13.0+cpu"`` -> ``(2, 13, 0)``; enough to compare releases before any other package is imported."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:3])


def _declare_torchvision_operators() -> None:
    """Makes torchvision importable if its compiled operators cannot be loaded.

    The wheels on PyPI are CUDA builds. With a CPU build of torch their library does not load, and ``import
    torchvision`` fails at two operators that it registers with the compiler without checking for them. mmpretrain needs
    only the Python part (transforms), so the two are declared without an implementation. If the library loads, nothing
    is done.
    """
    global _torchvision_schemas
    import torch  # not at the top, since check() reports its absence, and it takes seconds

    if hasattr(torch.ops.torchvision, "nms"):
        return
    package = Path(importlib.util.find_spec("torchvision").origin).parent
    try:
        for library in package.glob("_C.*"):
            torch.ops.load_library(library)
    except OSError:
        _torchvision_schemas = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _torchvision_schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def import_datasets() -> None:
    """Imports the data sets of mmdet and mmpretrain with their prints sent to standard error.

    Standard output is for the figures of ``--json -``. The maintained line notes that an optional package of its vendor
    is missing; that is left out.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            importlib.import_module("mmdet.datasets")
            importlib.import_module("mmpretrain.datasets")
    finally:
        lines = printed.getvalue().splitlines(keepends=True)
        sys.stderr.writelines(line for line in lines if not line.startswith("Could not import OneDL"))
