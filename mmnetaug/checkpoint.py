"""Loads checkpoints without running code that they contain.

A checkpoint is a pickle, which can run any command when it is loaded. Tiny checkpoints hold tensors and plain types, so
torch's restricted unpickler loads them. MMEngine's training checkpoints hold more (its ``HistoryBuffer``, numpy
scalars). With torch 2.6 and later, the original line therefore cannot resume from its own checkpoints, and the
maintained line allows too much: ``getattr``, by which a pickle reaches everything, and a full unpickling of *any* file
as a fallback. This module decides instead, by :func:`unpickling`: no code runs in what the tools do, but for files that
the user trusts, such as those in the run's own work directory.

A config is a Python program that runs when it is read: a config from elsewhere must be trusted like a program.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import find_latest_checkpoint
from torch import nn

from mmnetaug.errors import CheckpointError
from mmnetaug.files import is_local

# torch's switches for code that cannot be changed, here mmengine's: the first overrides every call, the second only
# calls without `weights_only`.
_ONLY_TENSORS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ANY_OBJECT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

_PICKLED = (
    "{} holds pickled objects, which can run any command on this machine when they are loaded. If it is a full "
    "training checkpoint, use the *_tiny.pth beside it; if you know where it comes from, pass --trust-checkpoint."
)


def read_checkpoint(path: str | os.PathLike[str], trusted: bool = False) -> dict[str, Any]:
    """Loads a checkpoint onto the CPU, restricted to tensors and plain types unless it is trusted.

    Args:
        path: A file, or a URL or name that MMEngine can download from.
        trusted: Whether it may hold any pickle.

    Returns:
        A state dict, or a dict that holds one under ``"state_dict"``.

    Raises:
        CheckpointError: It is missing, damaged or no checkpoint, or it holds other objects and is not trusted.
    """
    file, local = Path(path).expanduser(), is_local(str(path))
    if local and not file.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        if local and not trusted:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        else:
            with unpickling(trusted):
                checkpoint = CheckpointLoader.load_checkpoint(str(path), map_location="cpu")
    except CheckpointError:  # of ReadOnce
        raise
    except (  # the unpickler interprets any bytes as instructions
        *(pickle.UnpicklingError, OSError, RuntimeError, EOFError, struct.error, ImportError),
        *(LookupError, ValueError, TypeError, AttributeError),  # KeyError: a misspelt name after torchvision://, too
    ) as error:
        if isinstance(error, pickle.UnpicklingError) and not (local and not _is_torch_file(file)):
            raise CheckpointError(_PICKLED.format(path)) from error
        if local and not isinstance(error, OSError | ImportError):
            raise CheckpointError(
                f"{path} ({file.stat().st_size} bytes) is damaged, cut short or no checkpoint at all: copy it again"
            ) from error
        raise CheckpointError(f"checkpoint {path} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint (a dict of weights)")
    return checkpoint


class ReadOnce(contextlib.AbstractContextManager):
    """Reads each checkpoint of a run once, so that MMEngine loads exactly what was checked.

    Inside of this context, MMEngine's ``CheckpointLoader``, which ``Runner``, ``init_cfg`` and models use, returns what
    :meth:`read` has read. Replacing a file after its check has no effect.
    """

    def __init__(self) -> None:
        self._read: dict[str, dict[str, Any]] = {}

    def read(self, path: str, trusted: bool) -> dict[str, Any]:
        """:func:`read_checkpoint` with its result cached until :meth:`forget`."""
        if path not in self._read:
            self._read[path] = read_checkpoint(path, trusted)
        return self._read[path]

    def forget(self) -> None:
        """Frees the memory when everything is loaded."""
        self._read.clear()

    def __enter__(self) -> ReadOnce:
        self._replaced = vars(CheckpointLoader)["load_checkpoint"]
        load = CheckpointLoader.load_checkpoint

        def load_checkpoint(filename: str, map_location: Any = None, logger: Any = "current") -> dict[str, Any]:
            if filename in self._read:
                return copy.deepcopy(self._read[filename])  # hooks and models change it
            try:
                return load(filename, map_location, logger)
            except pickle.UnpicklingError as error:
                raise CheckpointError(_PICKLED.format(filename)) from error

        CheckpointLoader.load_checkpoint = staticmethod(load_checkpoint)
        return self

    def __exit__(self, *error: object) -> None:
        CheckpointLoader.load_checkpoint = self._replaced


def find_last_checkpoint(work_dir: Path) -> str | None:
    """The last checkpoint by MMEngine's record, or the newest file if the record is missing or incomplete."""
    noted = find_latest_checkpoint(str(work_dir)) or ""
    # the record holds a path, and the work directory may have been moved
    found = [path for path in (Path(noted), work_dir / Path(noted).name) if path.is_file()]
    saved = [path for kind in ("epoch", "iter") for path in work_dir.glob(f"{kind}_*[0-9].pth")]
    found += sorted(saved, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return str(found[0]) if found else None


def pretrained(module: nn.Module) -> Iterator[Mapping[str, Any]]:
    """Yields the entries of a module's ``init_cfg`` that load checkpoints."""
    init_cfg = getattr(module, "init_cfg", None) or []
    for init in [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg:
        if init.get("type") == "Pretrained" and init.get("checkpoint"):
            yield init


def _is_torch_file(path: Path) -> bool:
    """Whether a file starts like one of ``torch.save``: a zip archive, or before torch 1.6 a pickle of protocol 2."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


@contextlib.contextmanager
def unpickling(anything: bool) -> Iterator[None]:
    """Decides what ``torch.load`` may load inside of this context, whatever its arguments.

    Args:
        anything: Whether that is any pickle, such as MMEngine's full training checkpoints. Only for files that the user
            trusts: loading them can run any command. Otherwise it is tensors and plain types.
    """
    switch, other = (_ANY_OBJECT, _ONLY_TENSORS) if anything else (_ONLY_TENSORS, _ANY_OBJECT)
    before = {name: os.environ.pop(name) for name in (switch, other) if name in os.environ}
    os.environ[switch] = "1"
    try:
        yield
    finally:
        os.environ.pop(switch, None)
        os.environ.update(before)
