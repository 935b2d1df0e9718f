"""Paths, atomic writes, a lock for work directories, and logs whose last line may be incomplete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmnetaug.errors import UserError, WriteError

PATIENCE = 10
"""Seconds to wait for a folder, since data loaders of a killed run hold it for up to five."""

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Error numbers that concern the storage, not the file."""


def is_local(path: str) -> bool:
    """Whether a checkpoint is a local file and not a URL or a name such as ``torchvision://resnet50``."""
    return re.match(r"[\w-]+:(s3:)?//", path) is None


def lies_in(path: str, folder: str) -> bool:
    """Whether ``path`` is a file below ``folder``, with links resolved."""
    return Path(path).is_file() and Path(path).resolve().is_relative_to(Path(folder).resolve())


@contextlib.contextmanager
def replaced_when_done(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and renames it at the end, so that ``path`` is never incomplete.

    The content is synced to disk before the rename, so this also holds after a loss of power.

    Args:
        path: The file. Its folder is created if necessary.

    Raises:
        WriteError: The file cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # writers choose the format by the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # renaming over /dev/null would replace it
            raise WriteError(f"{path} cannot be written: it is {'a folder' if path.is_dir() else 'no regular file'}")
        temporary.touch()  # tries it, since permissions do not apply to root or show a read-only disk
        temporary.unlink()
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error}") from error
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        raise WriteError(f"{path} cannot be written: {os.strerror(error.errno)}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Locks a folder for this process, and removes temporary files of killed runs from it.

    The lock is released when the process ends, however it ends.

    Args:
        folder: Created if necessary.

    Raises:
        WriteError: Another process holds the lock, or the folder cannot be written.
    """
    folder = Path(folder)
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise WriteError(
            f"another run is writing to {folder}: wait until it has ended, or name another folder with --work-dir"
        ) from error
    except OSError as error:
        raise WriteError(f"{folder} cannot be written: {error}") from error
    try:
        for left in folder.iterdir():
            if re.match(r"\.\d+\.", left.name) and left.is_file():  # of replaced_when_done
                left.unlink()
        yield
    finally:
        lock.release()


def read_log(work_dir: Path) -> list[dict[str, Any]]:
    """Reads the entries of a run's ``scalars.json``; a resumed run has several of them.

    An incomplete last entry, which a killed run may leave, is ignored.

    Raises:
        UserError: A log holds anything else.
    """
    entries = []
    for log in sorted(work_dir.glob("*/vis_data/scalars.json")):
        lines = log.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError(f"{type(entry).__name__} instead of an entry")
            except ValueError as error:
                if number == len(lines) and not line.endswith(b"\n"):
                    break
                raise UserError(f"{log}, line {number} is no log of tools/train.py: {error}") from error
            entries.append(entry)
    return entries
