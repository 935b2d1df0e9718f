"""Plot learning curves of several runs against each other, from their logs (figure 4 of the paper)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import mmnetaug  # noqa: F401  (checks the environment)
from mmnetaug.apis.cli import run_tool
from mmnetaug.errors import UserError
from mmnetaug.files import read_log, replaced_when_done


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dirs", nargs="+", metavar="WORK_DIR", help="of tools/train.py, one per run")
    parser.add_argument(
        "--keys",
        nargs="+",
        default=["train_accuracy/top1", "accuracy/top1"],
        help="values to plot, by their names in the log, such as loss or pascal_voc/mAP (default: %(default)s)",
    )
    parser.add_argument("--legend", nargs="+", metavar="LABEL", help="one per run (default: names of the work dirs)")
    parser.add_argument("--out", required=True, metavar="PATH.png", help="where the picture goes")
    return run_tool(plot, parser.parse_args(argv))


def plot(args: argparse.Namespace) -> None:
    """Read the logs, draw the curves."""
    labels = args.legend or [Path(work_dir).name for work_dir in args.work_dirs]
    if len(labels) != len(args.work_dirs):
        raise UserError(f"{len(args.work_dirs)} runs need as many labels after --legend, not {len(labels)}")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, (work_dir, label) in enumerate(zip(args.work_dirs, labels, strict=True)):
        for key, style in zip(args.keys, ("-", "--", ":", "-.") * len(args.keys), strict=False):
            steps = read_curve(Path(work_dir), key)
            axes.plot(list(steps), list(steps.values()), style, color=f"C{index}", label=f"{label}: {key}")
    axes.set(xlabel="epoch (of values logged in between: iteration)")
    axes.grid(alpha=0.3)
    axes.legend()
    with replaced_when_done(args.out) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    print(f"written: {args.out}")


def read_curve(work_dir: Path, key: str) -> dict[int, float]:
    """What a run logged under a name, by its step; a run that was resumed has several logs, of which the later counts.

    Raises:
        UserError: There is no log, or nothing in it has that name.
    """
    try:
        entries = read_log(work_dir)
    except ValueError as error:
        raise UserError(f"this is no log of tools/train.py: {error}") from error
    curve = {entry["step"]: entry[key] for entry in entries if key in entry}
    if not entries:
        raise UserError(f"{work_dir} is no work directory of tools/train.py: nothing in */vis_data/scalars.json")
    if not curve:
        names = sorted({name for entry in entries for name in entry} - {"step", "epoch", "iter"})
        raise UserError(f"nothing in the log of {work_dir} is called {key}; there are {', '.join(names)}")
    return dict(sorted(curve.items()))


if __name__ == "__main__":
    sys.exit(main())
