"""The work of ``tools/plot_curves.py``: draws learning curves of several runs, and of one run when it ends."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mmnetaug.errors import UserError
from mmnetaug.files import read_log, replaced_when_done

from .evaluation import HEADLINES

COUNTERS = {"step", "epoch", "iter", "time", "data_time"}


def plot_curves(args: argparse.Namespace) -> None:
    """Read the logs, draw the curves."""
    labels = args.legend or [Path(work_dir).name for work_dir in args.work_dirs]
    if len(labels) != len(args.work_dirs):
        raise UserError(f"{len(args.work_dirs)} runs need as many labels after --legend, not {len(labels)}")
    figure, [axes] = new_figure()
    for index, (work_dir, label) in enumerate(zip(args.work_dirs, labels, strict=True)):
        for key, style in zip(args.keys, ("-", "--", ":", "-.") * len(args.keys), strict=False):
            steps = read_curve(Path(work_dir), key)
            axes.plot(list(steps), list(steps.values()), style, color=f"C{index}", label=f"{label}: {key}")
    axes.set(xlabel="epoch (of values logged in between: iteration)")
    axes.legend()
    save_figure(figure, args.out)
    print(f"written: {args.out}")


def read_curve(work_dir: Path, key: str) -> dict[int, float]:
    """What a run logged under a name, by its step; a run that was resumed has several logs, of which the later counts.

    Raises:
        UserError: There is no log, or nothing in it has that name.
    """
    entries = read_log(work_dir)
    curve = curve_of(entries, key)
    if not entries:
        raise UserError(f"{work_dir} is no work directory of tools/train.py: nothing in */vis_data/scalars.json")
    if not curve:
        names = sorted({name for entry in entries for name in entry} - {"step", "epoch", "iter"})
        raise UserError(f"nothing in the log of {work_dir} is called {key}; there are {', '.join(names)}")
    return curve


def curve_of(entries: list[dict[str, Any]], key: str) -> dict[int, float]:
    """The values of a name in a log, by step; of equal steps the last counts."""
    return dict(sorted({entry["step"]: entry[key] for entry in entries if key in entry}.items()))


def new_figure(panels: int = 1) -> tuple[Figure, list[Any]]:
    """A figure with axes side by side, not shown on a screen."""
    figure = Figure(figsize=(7 * panels, 4.5), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.grid(alpha=0.3)
    return figure, axes


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG."""
    with replaced_when_done(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def plot_run(work_dir: Path) -> Path | None:
    """Draws the loss and the validation metric of a run to ``curves.png`` in its work directory.

    Returns:
        The picture, or None if nothing was logged.
    """
    entries = read_log(work_dir)
    measured = dict.fromkeys(name for entry in entries if "loss" not in entry for name in entry if name not in COUNTERS)
    metric = next((name for name in (*HEADLINES, *measured) if name in measured), None)
    curves = {name: curve for name in ("loss", metric) if (curve := curve_of(entries, name))}
    if not curves:
        return None
    figure, panels = new_figure(len(curves))
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        axes.plot(list(curve), list(curve.values()), ".-" if name == "loss" else "o-")
        # as MMEngine counts them: training by iterations, validation by epochs where there are any
        axes.set(title=name, xlabel="iteration" if name == "loss" else "epoch, or iteration of training without epochs")
    save_figure(figure, work_dir / "curves.png")
    return work_dir / "curves.png"
