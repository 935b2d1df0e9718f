"""Print what a config trains, without training it: the network, its cost, what NetAug widens, and the data."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import mmnetaug  # noqa: F401  (checks the environment, registers everything)
from mmnetaug.cli import config_parser, fill_data, load_config, run_tool
from mmnetaug.datasets import DataError, check_data
from mmnetaug.preflight import build_model, inspect_network


def main(argv: list[str] | None = None) -> int:
    parser = config_parser(__doc__)
    parser.add_argument("--input-shape", nargs=2, type=int, metavar=("H", "W"), help="in place of the config's")
    parser.add_argument("--json", metavar="PATH", help="also write the figures there; - is standard output, alone")
    return run_tool(describe, parser.parse_args(argv))


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Print the report; returns its figures."""
    cfg = load_config(args)
    reports, problem = [], None
    try:
        fill_data(cfg, args)
        reports = check_data(cfg)
    except DataError as error:  # a config can be described before its data are there
        problem = str(error)
    network = inspect_network(cfg, build_model(cfg), args.input_shape)
    print(network)
    for report in reports:
        print(f"data: {report}")
    if problem:
        print(f"data: not usable yet: {problem}")
    return {
        "config": args.config,
        **network.figures(),
        "data": {report.name: {"images": report.images, "classes": list(report.classes)} for report in reports},
        "data_problem": problem,
    }


if __name__ == "__main__":
    sys.exit(main())
