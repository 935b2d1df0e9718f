"""Draw the detections of two or more networks in the same images, side by side with the annotations."""

from __future__ import annotations

import argparse
import sys

from mmnetaug.apis.cli import add_cfg_options_argument, start_tool


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        nargs=3,
        action="append",
        required=True,
        metavar=("LABEL", "CONFIG", "CHECKPOINT"),
        help="once per detector; the images are those of the first one's test data",
    )
    parser.add_argument("--images", nargs="+", type=int, required=True, help="indices of test images, from 0")
    parser.add_argument("--out", required=True, metavar="PATH.jpg", help="the picture")
    parser.add_argument("--score", type=float, default=0.3, help="minimum score to draw (default: 0.3)")
    parser.add_argument("--data-root", metavar="PATH", help="folder of the data, in place of the configs' data_root")
    add_cfg_options_argument(parser, "all configs")
    parser.add_argument("--trust-checkpoint", action="store_true", help="let checkpoints run code when they are loaded")
    return start_tool("compare", parser.parse_args(argv), needs_data=True)


if __name__ == "__main__":
    sys.exit(main())
