"""Files that survive a kill: written whole or not at all, by one run at a time, and read up to a line that was cut."""

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

from mmnetaug.errors import WriteError

PATIENCE = 10
"""Seconds to wait for a folder: the data loaders of a killed run hold it for up to five."""

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Error numbers that blame the storage, whichever file is written."""


@contextlib.contextmanager
def replaced_when_done(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; rename it at the end, so that no half file is ever seen.

    The content reaches the disk before the name does, so the same holds when the machine loses power.

    Args:
        path: The file. Its folder is made if there is none.

    Raises:
        WriteError: No file can be written there, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # writers choose their format by the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # renaming over /dev/null would replace it
            raise WriteError(f"{path} cannot be written: it is {'a folder' if path.is_dir() else 'no regular file'}")
        temporary.touch()  # asks the file system itself: permissions say nothing to root, nor on a read-only disk
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
    """Keep a folder to one process for the length of a run, and remove what killed runs left half written there.

    The lock belongs to the process, so that a killed one leaves nothing locked.

    Args:
        folder: Made if there is none.

    Raises:
        WriteError: Another process is writing there, or nobody can.
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
    """The entries of a run's ``scalars.json``, one log after the other where it was resumed.

    A run that was killed may have left half an entry at the end of a log; it is left out.

    Raises:
        ValueError: A log holds something else.
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
                raise ValueError(f"{log}, line {number}: {error}") from error
            entries.append(entry)
    return entries
