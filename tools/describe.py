"""Print a config's network, its cost and memory, what NetAug widens, and the data, without training."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import mmnetaug  # noqa: F401  (checks the environment, registers everything)
from mmnetaug.analysis.memory import kilobytes, measure_footprint, parse_bytes
from mmnetaug.apis.build import build_model
from mmnetaug.apis.cli import add_size_argument, config_parser, fill_data, load_config, run_tool
from mmnetaug.apis.evaluation import without_netaug
from mmnetaug.apis.input_size import set_input_size, sets_size
from mmnetaug.apis.preflight import inspect_network
from mmnetaug.datasets import check_data, find_unlisted
from mmnetaug.deploy.latency import RUNTIMES, measure_latency
from mmnetaug.errors import DataError, UserError


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code: 1 if the network does not fit into the budget."""
    parser = config_parser(__doc__)
    add_size_argument(parser)
    parser.add_argument("--layers", action="store_true", help="print the table of layers")
    parser.add_argument("--sram", type=size_in_bytes, metavar="320KB", help="check whether the int8 network fits")
    parser.add_argument("--flash", type=size_in_bytes, metavar="1MB", help="check whether the int8 weights fit")
    parser.add_argument("--latency", action="store_true", help="measure it here: one image, one thread")
    parser.add_argument("--json", metavar="PATH", help="also write the figures there; - is standard output, alone")
    args = parser.parse_args(argv)
    args.misfits = []
    return run_tool(describe, args) or int(bool(args.misfits))


def size_in_bytes(text: str) -> int:
    """``parse_bytes`` for argparse."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Prints the report; returns its figures."""
    cfg = load_config(args)
    reports, unlisted, problem = [], [], None
    try:
        fill_data(cfg, args)
        reports = check_data(cfg)
        unlisted = find_unlisted(cfg)
    except DataError as error:  # a config can be described without its data
        problem = str(error)
    if args.size and sets_size(cfg):
        set_input_size(cfg, args.size, ("test",))
    model = build_model(cfg)
    network = inspect_network(cfg, model, (args.size, args.size) if args.size else None)
    print(network)
    footprint = measure_footprint(model, network.cost.input_shape) if network.cost else None
    args.misfits = footprint.misfits(args.sram, args.flash) if footprint else []
    if footprint:
        print(footprint)
    if footprint and args.layers:
        print(footprint.table())
    if args.sram is not None or args.flash is not None:
        if not footprint:
            raise UserError(f"whether this network fits cannot be told: {network.cost_problem}")
        budget = [f"{kilobytes(size)} of {what}" for size, what in ((args.sram, "SRAM"), (args.flash, "flash")) if size]
        if network.cost.not_counted:
            parts = ", ".join(network.cost.not_counted)
            raise UserError(f"whether this network fits cannot be told: {parts} not counted")
        verdict = "does not fit" if args.misfits else "fits"
        print("\n  ".join([f"budget: the network {verdict} into {' and '.join(budget)}", *args.misfits]))
    latency = None
    if args.latency:
        if not network.cost:
            raise UserError(f"the latency cannot be measured: {network.cost_problem}")
        cfg.model = without_netaug(cfg.model)
        latency = measure_latency(build_model(cfg).eval(), network.cost.input_shape)
        print("latency: " + ", ".join(f"{RUNTIMES[name]} {ms:.1f} ms" for name, ms in latency.items()))
    for line in (*reports, *unlisted):
        print(f"data: {line}")
    if problem:
        print(f"data: not usable yet: {problem}")
    return {
        "config": args.config,
        **network.figures(),
        "footprint": footprint and footprint.figures(),
        "misfits": args.misfits,
        "latency": latency,
        "data": {report.name: {"images": report.images, "classes": list(report.classes)} for report in reports},
        "data_problem": problem,
    }


if __name__ == "__main__":
    sys.exit(main())
