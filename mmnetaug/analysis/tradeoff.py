"""Accuracy over cost: curves through measured points, and the cost saved at equal accuracy.

As in figure 5 of the paper, each network is measured at several input sizes, which gives a curve of accuracy over
multiply-accumulates. It is interpolated monotonically between points, and never extrapolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator


@dataclass(frozen=True)
class Point:
    """A network at one input size.

    Attributes:
        size: Height and width of its input in pixels.
        accuracy: AP50 or top-1, a fraction.
        macs: Multiply-accumulates of one image.
        params: Parameters.
        peak_memory: Bytes of int8 activations.
        latency_ms: Measured milliseconds of CPU time for one image, in PyTorch.
        onnx_ms: The same in ONNX Runtime; None if not measured.
        onnx_int8_ms: The same of the network in int8.
    """

    size: int
    accuracy: float
    macs: int
    params: int
    peak_memory: int
    latency_ms: float
    onnx_ms: float | None = None
    onnx_int8_ms: float | None = None


@dataclass(frozen=True)
class Saving:
    """The MACs that a network saves over a reference at equal accuracy.

    Attributes:
        low, high: The range of accuracies in which both were measured and the saving is defined.
        fractions: The fraction of the reference's MACs that is saved at accuracies spaced evenly in this range,
            ascending; negative if more are needed.
    """

    low: float
    high: float
    fractions: tuple[float, ...]

    @property
    def at_best(self) -> float:
        """The saving at ``high``."""
        return self.fractions[-1]

    def figures(self) -> dict[str, Any]:
        """The saving as plain values, for JSON."""
        largest = int(np.argmax(self.fractions))
        return {
            "defined_from": self.low,
            "defined_to": self.high,
            "at_best": self.at_best,
            "largest": self.fractions[largest],
            "largest_at": float(np.linspace(self.low, self.high, len(self.fractions))[largest]),
            "mean": float(np.mean(self.fractions)),
        }

    def __str__(self) -> str:
        figures = self.figures()
        span = f"defined from {self.low:.3f} to {self.high:.3f}, where both were measured"
        if figures["largest"] <= 0:
            return f"saves no MACs at any accuracy: it needs {abs(figures['largest']):.0%} more at the least ({span})"
        best = f"{self.at_best:.0%} fewer" if self.at_best >= 0 else f"{-self.at_best:.0%} more"
        return (
            f"{best} MACs at {self.high:.3f}, at the most {figures['largest']:.0%} fewer at "
            f"{figures['largest_at']:.3f}, {figures['mean']:.0%} saved on average ({span})"
        )


def frontier(points: Sequence[Point]) -> list[Point]:
    """The Pareto-optimal points, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.macs, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def macs_at(points: Sequence[Point], accuracies: Sequence[float]) -> np.ndarray:
    """The MACs at given accuracies, on the monotone curve (PCHIP) through the frontier of measured points.

    Raises:
        ValueError: An accuracy is outside of the measured range.
    """
    best = frontier(points)
    known = [point.accuracy for point in best]
    if min(accuracies) < known[0] or max(accuracies) > known[-1]:
        raise ValueError(f"measured from {known[0]} to {known[-1]}: nothing is known beyond")
    if len(best) == 1:
        return np.full(len(accuracies), float(best[0].macs))
    return PchipInterpolator(known, [float(point.macs) for point in best])(accuracies)


def macs_saved(reference: Sequence[Point], other: Sequence[Point], samples: int = 201) -> Saving | None:
    """The saving of ``other`` over ``reference`` at equal accuracy; None if their measured ranges do not overlap."""
    ranges = [[point.accuracy for point in frontier(points)] for points in (reference, other)]
    low, high = max(known[0] for known in ranges), min(known[-1] for known in ranges)
    if low > high:
        return None
    accuracies = np.linspace(low, high, samples)
    accuracies[-1] = high
    fractions = 1 - macs_at(other, accuracies) / macs_at(reference, accuracies)
    return Saving(low, high, tuple(fractions.tolist()))


def plot_tradeoff(curves: Mapping[str, Sequence[Point]], metric: str, path: str | Path, title: str = "") -> None:
    """Draws accuracy over MACs, with the saving as an arrow, as in figure 5 of the paper.

    Args:
        curves: Points by label; the first is the reference.
        metric: Name of the accuracy, for the axis.
        path: Path of the picture.
        title: Title of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    reference = next(iter(curves.values()))
    for index, (label, points) in enumerate(curves.items()):
        points, colour = sorted(points, key=lambda point: point.macs), f"C{index}"
        best = frontier(points)
        accuracies = np.linspace(best[0].accuracy, best[-1].accuracy, 200)
        axes.plot(macs_at(points, accuracies) / 1e6, accuracies * 100, color=colour, label=label)
        axes.plot([p.macs / 1e6 for p in points], [p.accuracy * 100 for p in points], "o", color=colour)
        for point in points:
            offset = 7 if index % 2 else -13
            text: dict[str, Any] = dict(xytext=(0, offset), textcoords="offset points", fontsize=8, ha="center")
            axes.annotate(str(point.size), (point.macs / 1e6, point.accuracy * 100), color=colour, **text)
        saving = macs_saved(reference, points) if index else None
        if saving and saving.at_best > 0:
            start, end = (float(macs_at(p, [saving.high])[0]) / 1e6 for p in (reference, points))
            height = saving.high * 100
            axes.annotate("", (end, height), (start, height), arrowprops=dict(arrowstyle="->", color="0.3"))
            text = dict(xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9)
            axes.annotate(f"{saving.at_best:.0%} fewer MACs", ((start + end) / 2, height), **text)
    axes.set(xlabel="MACs (M)", ylabel=f"{metric} (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path, dpi=150, format="png")
