"""Run a checkpoint or an exported file on images, videos or a camera: writes them annotated, COCO JSON and CSV."""

from __future__ import annotations

import sys

from mmnetaug.apis.cli import add_size_argument, add_tflite_argument, config_parser, start_tool


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code: 1 if any input failed."""
    parser = config_parser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint of the config, or an .onnx or .tflite file of tools/export.py")
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, video, folder of them, glob, or number of a camera, from 0"
    )
    parser.add_argument("--out-dir", default="predictions", help="where results go (default: ./predictions)")
    parser.add_argument("--score-thr", type=float, default=0.3, help="lowest score of a detection (default: 0.3)")
    add_size_argument(parser)
    add_tflite_argument(parser)
    parser.add_argument("--trust-checkpoint", action="store_true", help="let the checkpoint run code when loaded")
    parser.add_argument("--json", metavar="PATH", help="also write a summary there; - is standard output, alone")
    args = parser.parse_args(argv)
    args.failed = []
    return start_tool("predict", args) or int(bool(args.failed))


if __name__ == "__main__":
    sys.exit(main())
