"""The work of ``tools/plot_curves.py``: draws learning curves of several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmnetaug.errors import UserError

from .curves import new_figure, read_curve, save_figure


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
