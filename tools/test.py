"""Evaluate a checkpoint, or an exported .onnx or .tflite file, on a config's test data."""

from __future__ import annotations

import sys

from mmnetaug.apis.cli import add_runner_arguments, add_tflite_argument, config_parser, start_tool


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = config_parser(__doc__)
    parser.add_argument(
        "checkpoint",
        help="tiny checkpoint (*_tiny.pth), a full one of the same config, or a file of tools/export.py",
    )
    add_runner_arguments(parser)
    parser.add_argument("--out", metavar="PATH.pkl", help="save all predictions to this file")
    parser.add_argument("--show-dir", metavar="PATH", help="save all test images with their predictions to this folder")
    add_tflite_argument(parser)
    parser.add_argument("--json", metavar="PATH", help="also write the metrics there; - is standard output, alone")
    return start_tool("test", parser.parse_args(argv), needs_data=True)


if __name__ == "__main__":
    sys.exit(main())
