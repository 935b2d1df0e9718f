"""Convert a checkpoint of the NetAug authors, torchvision, timm or a wider network for a config of the same network.

A checkpoint of a wider network, theirs, mmpretrain's or one's own, also a detector's, is cut to the config's width by
--cut-from. The result is a start for training: --cfg-options load_from=OUT, for the config itself or a detector with
its backbone.
"""

from __future__ import annotations

import argparse
import sys

from mmnetaug.apis.cli import add_cfg_options_argument, start_tool


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "config", help="config of a classifier of the same network and number of classes, or of a detector to cut to"
    )
    parser.add_argument("checkpoint", help="the state dict that they publish, or one's own checkpoint")
    add_cfg_options_argument(parser)
    parser.add_argument(
        "--cut-from",
        metavar="WIDTH|CONFIG",
        help="width multiplier of a classifier's checkpoint, such as 1.0, or its config; its most important channels "
        "are kept (default: the config's own)",
    )
    parser.add_argument("--out", required=True, metavar="PATH.pth", help="where the converted checkpoint goes")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="let the checkpoint run code on this machine when it is loaded (it may hold any pickle)",
    )
    return start_tool("convert_checkpoint", parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
