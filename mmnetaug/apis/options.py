"""Finds misspelt options in a config, before anything is built.

MMEngine builds loops, optimizers and schedules only when training starts, and some classes accept any argument. An
option is misspelt if the class does not take it but takes one of a similar name, so that options that other code
consumes (such as ``requires_grad`` of norms) pass. Of an optimizer every option must be one that the class takes.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import mmengine.registry
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import mmnetaug.registry  # noqa: F401  (first, since it imports OpenMMLab's data sets without what they print)
from mmnetaug.errors import UserError

from .cli import near_misses

REGISTRIES = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]

CONSUMED = {"type", "_scope_", "priority", "constructor", "paramwise_cfg", "convert_to_iter_based", "by_epoch"}
"""Options that MMEngine takes out before it builds an object."""

LOADER = {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_batch_per_epoch"}

UNTYPED: dict[str, tuple[Callable, ...]] = {
    "train_cfg": (EpochBasedTrainLoop, IterBasedTrainLoop),
    "val_cfg": (ValLoop,),
    "test_cfg": (TestLoop,),
    "optim_wrapper": (OptimWrapper,),
    "train_dataloader": (DataLoader,),
    "val_dataloader": (DataLoader,),
    "test_dataloader": (DataLoader,),
}
"""What MMEngine builds of sections without a type."""


def check_options(cfg: Config) -> None:
    """Checks the names of all options of a config that MMEngine's Runner uses; it imports what the config names.

    Raises:
        UserError: Some are misspelt; the message has a line for each, with the name that was probably meant.
    """
    runner = set(inspect.signature(Runner.__init__).parameters) - {"self"}
    lines: list[str] = []
    scope = cfg.get("default_scope") or "mmengine"
    for name in runner & set(cfg):
        lines += _misspelt(cfg[name], name, scope, UNTYPED.get(name, ()))
    if lines:
        raise UserError("\n".join(lines))


def _misspelt(value: Any, path: str, scope: str, built: tuple[Callable, ...] = ()) -> Iterator[str]:
    """Yields a line for every misspelt option of a part of a config.

    Args:
        value: The part.
        path: Its name.
        scope: Scope of types without one.
        built: What is built of it if it has no type.
    """
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _misspelt(item, f"{path}[{index}]", scope)
    if not isinstance(value, dict):
        return
    scope = value.get("_scope_") or scope
    built = _find(value["type"], scope) if value.get("type") else built
    if built:
        known = CONSUMED.union(*map(_parameters, built)) | (LOADER if DataLoader in built else set())
        near = dict(near_misses(value, known))
        for name, meant in near.items():
            yield f"{path}.{name} is no option of {_name(built[0])}: did you mean {meant}?"
        if all(map(_is_strict, built)):
            has = ", ".join(sorted(known - CONSUMED - {"params"}))
            for name in value.keys() - known - near.keys():
                yield f"{path}.{name} is no option of {_name(built[0])}, which has {has}"
    for name, item in value.items():
        yield from _misspelt(item, f"{path}.{name}", scope)


def _find(kind: Any, scope: str) -> tuple[Callable, ...]:
    """Everything that a type may stand for: a name may be registered as a model and as a transform."""
    if not isinstance(kind, str):
        return (kind,) if callable(kind) else ()
    prefix, _, name = kind.rpartition(".")
    with contextlib.suppress(ImportError):
        importlib.import_module(f"{prefix or scope}.registry")  # as MMEngine does
    found = []
    for root in REGISTRIES:
        registry = root.children.get(prefix or scope, root)
        registry.import_from_location()
        found += [at.module_dict[name] for at in dict.fromkeys((registry, root)) if name in at.module_dict]
    return tuple(found)


def _is_strict(kind: Callable) -> bool:
    """Whether it is an optimizer that takes no option but those of its signature."""
    if not (inspect.isclass(kind) and issubclass(kind, Optimizer)):
        return False
    parameters = inspect.signature(kind.__init__).parameters.values()
    return not any(one.kind is one.VAR_KEYWORD for one in parameters)


def _name(kind: Callable) -> str:
    return getattr(kind, "__name__", type(kind).__name__)


def _parameters(kind: Callable) -> set[str]:
    """Names of the arguments of a function or class; with ``**kwargs``, those of the base classes, too."""
    names: set[str] = set()
    for owner in kind.__mro__ if inspect.isclass(kind) else (kind,):
        call = vars(owner).get("__init__") if inspect.isclass(kind) else owner
        if call is None or owner is object:
            continue
        try:
            parameters = inspect.signature(call).parameters.values()
        except ValueError:  # compiled, without a signature
            return set()
        names |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return names - {"self"}
