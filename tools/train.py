"""Train a detector or classifier, with NetAug or without, after checking config, data and checkpoints."""

from __future__ import annotations

import sys

from mmnetaug.apis.cli import AUTO, BACKENDS, add_runner_arguments, at_least_one, config_parser, start_tool


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = config_parser(__doc__)
    add_runner_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=AUTO,
        metavar="CHECKPOINT",
        help="resume from this checkpoint or, by default, from the last one in the work directory, if there is one",
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="accept checkpoints (load_from, init_cfg) that lack layers of this network: those start anew",
    )
    parser.add_argument(
        "--epochs", type=at_least_one, metavar="N", help="train for N epochs; schedules by epochs are scaled"
    )
    parser.add_argument("--batch-size", type=at_least_one, metavar="N", help="images per step and GPU")
    for name, (_, what) in BACKENDS.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"also log to {what}, by MMEngine's backend")
    parser.add_argument("--amp", action="store_true", help="mixed precision (bfloat16 on a CPU); NetAug stays on")
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate to the batch size, by the config's base"
    )
    return start_tool("train", parser.parse_args(argv), needs_data=True)


if __name__ == "__main__":
    sys.exit(main())
