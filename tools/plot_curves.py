"""Plot learning curves of several runs against each other, from their logs (figure 4 of the paper)."""

from __future__ import annotations

import argparse
import sys

from mmnetaug.apis.cli import start_tool


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
    return start_tool("plot_curves", parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
