"""Export the tiny network of a checkpoint: stock checkpoint with its config, ONNX, int8 ONNX and .tflite, each verified
before it is given its name."""

from __future__ import annotations

import sys

from mmnetaug.apis.cli import add_size_argument, at_least_one, config_parser, start_tool

FORMATS = ("stock", "onnx", "int8", "tflite")


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = config_parser(__doc__)
    parser.add_argument("checkpoint", help="tiny or full checkpoint of the config, NetAug included")
    parser.add_argument("--out", metavar="DIR", help="folder of the files (default: export/ beside the checkpoint)")
    parser.add_argument(
        "--to", nargs="+", choices=FORMATS, default=FORMATS[:3], help="formats to write (default: all but tflite)"
    )
    add_size_argument(parser)
    parser.add_argument(
        "--calibration-images", type=at_least_one, default=200, help="training images to calibrate int8 with"
    )
    parser.add_argument("--max-drop", type=float, default=0.02, help="AP50 or top-1 that int8 may lose (default: 0.02)")
    parser.add_argument(
        "--tflite-python", metavar="PATH", help="interpreter of the environment with LiteRT's converter, for tflite"
    )
    parser.add_argument("--trust-checkpoint", action="store_true", help="let the checkpoint run code when it is loaded")
    parser.add_argument("--json", metavar="PATH", help="also write the figures there; - is standard output, alone")
    return start_tool("export", parser.parse_args(argv), needs_data=True)


if __name__ == "__main__":
    sys.exit(main())
