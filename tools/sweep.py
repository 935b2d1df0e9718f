"""Measure networks at several input sizes: accuracy, MACs, memory and latency, and the MACs saved at equal accuracy."""

from __future__ import annotations

import argparse
import sys

from mmnetaug.apis.cli import add_cfg_options_argument, at_least_one, start_tool


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        nargs="+",
        action="append",
        required=True,
        metavar="X",
        help="LABEL CONFIG CHECKPOINT, once per network, the reference first; with --train LABEL CONFIG",
    )
    parser.add_argument("--sizes", nargs="+", type=at_least_one, required=True, help="heights and widths of the input")
    parser.add_argument(
        "--work-dir", required=True, help="folder of points, table and plot; finished points are reused"
    )
    parser.add_argument("--train", action="store_true", help="train each network at each size instead of once")
    parser.add_argument("--data-root", metavar="PATH", help="folder of the data, in place of the configs' data_root")
    add_cfg_options_argument(parser, "all configs")
    parser.add_argument("--title", default="", help="title of the plot")
    parser.add_argument("--trust-checkpoint", action="store_true", help="let checkpoints run code when they are loaded")
    parser.add_argument("--json", metavar="PATH", help="also write all figures there; - is standard output, alone")
    return start_tool("sweep", parser.parse_args(argv), needs_data=True)


if __name__ == "__main__":
    sys.exit(main())
