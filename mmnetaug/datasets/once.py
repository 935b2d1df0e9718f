"""Has each annotation file decoded once while data are found and checked, which takes several readings."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

_kept: ContextVar[dict[tuple[Callable, str], Any] | None] = ContextVar("kept", default=None)

Content = TypeVar("Content")


@contextlib.contextmanager
def decoded_once() -> Iterator[None]:
    """Keeps what is decoded until the end, as long as nothing changes these files."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def kept(read: Callable[[str | Path], Content]) -> Callable[[str | Path], Content]:
    """Decorates a function that reads a file, so that it is kept inside of :func:`decoded_once`."""

    @functools.wraps(read)
    def read_once(path: str | Path) -> Content:
        files = _kept.get()
        if files is None:
            return read(path)
        key = (read, str(Path(path)))
        if key not in files:
            files[key] = read(path)
        return files[key]

    return read_once
