"""Results of studies: finished runs as lines of a CSV file, and intervals over seeds."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy import stats


def append_line(path: Path, header: str, line: str) -> None:
    """Adds a line to a file, below a header if it is the first, in one write, as several processes may do at a time."""
    text = line if path.exists() else header + line
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of two or more values and the half width of its 95 % confidence interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)
