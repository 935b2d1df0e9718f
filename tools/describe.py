"""Print a config's network, its cost and memory, what NetAug widens, and the data, without training."""

from __future__ import annotations

import argparse
import sys

from mmnetaug.apis.cli import add_size_argument, config_parser, start_tool
from mmnetaug.terminal import parse_bytes


def size_in_bytes(text: str) -> int:
    """:func:`parse_bytes` for argparse."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code: 1 if the network does not fit into the budget."""
    parser = config_parser(__doc__)
    add_size_argument(parser)
    parser.add_argument("--layers", action="store_true", help="print the table of layers")
    parser.add_argument("--sram", type=size_in_bytes, metavar="320KB", help="check whether the int8 network fits")
    parser.add_argument("--flash", type=size_in_bytes, metavar="1MB", help="check whether the int8 weights fit")
    parser.add_argument("--latency", action="store_true", help="measure it here: one image, one thread")
    parser.add_argument(
        "--tflite-python", metavar="PATH", help="interpreter of LiteRT's environment, to measure --latency there, too"
    )
    parser.add_argument("--json", metavar="PATH", help="also write the figures there; - is standard output, alone")
    args = parser.parse_args(argv)
    if args.tflite_python and not args.latency:
        parser.error("--tflite-python needs --latency")
    args.misfits = []
    return start_tool("describe", args) or int(bool(args.misfits))


if __name__ == "__main__":
    sys.exit(main())
