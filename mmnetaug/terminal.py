"""Progress, abbreviated lists and sizes for the terminal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable

PROGRESS_EVERY = 5  # seconds


class Progress:
    """Prints the progress and the remaining time to standard error every few seconds."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.start = self.said = time.monotonic()

    def step(self) -> None:
        """Counts one more item."""
        self.done += 1
        now = time.monotonic()
        if now - self.said > PROGRESS_EVERY and self.done < self.total:
            left = (now - self.start) / self.done * (self.total - self.done)
            print(f"{self.title}: {self.done} of {self.total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            self.said = now


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
