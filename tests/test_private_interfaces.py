"""The table of private interfaces in docs/design.md: it is complete, and the installed releases have all of them."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
LISTED = re.findall(r"^\| `((?:torch|mm\w+)\.[\w.]+)`", (REPO / "docs/design.md").read_text(), re.MULTILINE)
FOREIGN = ("torch", "mmengine", "mmcv", "mmdet", "mmpretrain")


def is_private(name: str) -> bool:
    return re.match(r"_[a-zA-Z]", name) is not None


def used_and_own(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Private names that a module reads or imports, and those that it makes itself."""
    used, own = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            (own if of_self and isinstance(node.ctx, ast.Store) else used).add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            used |= {part.value for part in node.args[1:2] if isinstance(part, ast.Constant)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(FOREIGN):
            used |= {*node.module.split("."), *(alias.name for alias in node.names)}
    return used, own


def overridden() -> set[str]:
    """Private methods of other libraries that classes of the package replace."""
    names = set()
    for module in pkgutil.walk_packages([str(REPO / "mmnetaug")], "mmnetaug."):
        if module.name in ("mmnetaug.__main__", "mmnetaug.deploy.tflite_worker"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(kind) and kind.__module__ == module.name:
                bases = [base for base in kind.__mro__ if base.__module__.startswith(FOREIGN)]
                methods = [name for name, value in vars(kind).items() if inspect.isfunction(value)]
                names |= {name for name in methods if any(name in vars(base) for base in bases)}
    return names


def test_every_private_interface_is_listed():
    modules = [used_and_own(ast.parse(path.read_text())) for path in (REPO / "mmnetaug").rglob("*.py")]
    used, own = (set().union(*names) for names in zip(*modules, strict=True))
    found = {name for name in (used - own) | overridden() if is_private(name)}
    listed = {part for path in LISTED for part in path.split(".")}
    assert found - listed - {"_replace"} == set()  # of named tuples, and public


@pytest.mark.parametrize("path", LISTED)
def test_a_listed_interface_is_there(path):
    owner, _, name = path.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    assert hasattr(owner, name) or re.search(rf"\b{name} *[:=]", inspect.getsource(owner))
