"""What people read on a terminal besides results: how far long work is, and the first few of many names."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

PROGRESS_EVERY = 5  # seconds


class Progress:
    """Says on standard error every few seconds how far something is, and how long it will still take."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.start = self.said = time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        now = time.monotonic()
        if now - self.said > PROGRESS_EVERY and self.done < self.total:
            left = (now - self.start) / self.done * (self.total - self.done)
            print(f"{self.title}: {self.done} of {self.total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            self.said = now


def abbreviate(items: Iterable, most: int = 5) -> str:
    """The first few of some items, and how many more there are."""
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
