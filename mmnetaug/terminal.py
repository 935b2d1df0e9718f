"""Progress, abbreviated lists and sizes for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

PROGRESS_EVERY = 5  # seconds


def progress(title: str, total: int) -> tqdm:
    """A bar on standard error for work that takes longer than a few seconds; its ``update()`` counts one more item."""
    from tqdm import tqdm  # not at the top, since command lines are read without it

    return tqdm(total=total, desc=title, delay=PROGRESS_EVERY, mininterval=PROGRESS_EVERY, leave=False)


def abbreviate(items: Iterable, most: int = 5) -> str:
    """Lists the first items and the number of all others."""
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def parse_bytes(text: str) -> int:
    """Parses a size such as ``320KB``, ``1MB``, ``1.5 MiB`` or a number; K and M are binary, as in data sheets.

    Raises:
        ValueError: The text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KM])i?)?B?\s*", text, re.IGNORECASE)
    if not match:
        raise ValueError(f"a size in bytes is written like 320KB or 1MB, not {text!r}")
    factor = {"": 1, "K": 1024, "M": 1024**2}[(match[2] or "").upper()]
    return int(float(match[1]) * factor)
