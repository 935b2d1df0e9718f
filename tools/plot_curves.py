"""Plot learning curves of several runs against each other, from their logs (figure 4 of the paper)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mmnetaug  # noqa: F401  (checks the environment)
from mmnetaug.apis.cli import run_tool
from mmnetaug.apis.curves import new_figure, read_curve, save_figure
from mmnetaug.errors import UserError


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
    figure, [axes] = new_figure()
    for index, (work_dir, label) in enumerate(zip(args.work_dirs, labels, strict=True)):
        for key, style in zip(args.keys, ("-", "--", ":", "-.") * len(args.keys), strict=False):
            steps = read_curve(Path(work_dir), key)
            axes.plot(list(steps), list(steps.values()), style, color=f"C{index}", label=f"{label}: {key}")
    axes.set(xlabel="epoch (of values logged in between: iteration)")
    axes.legend()
    save_figure(figure, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    sys.exit(main())
