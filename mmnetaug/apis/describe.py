"""The work of ``tools/describe.py``: reports a config's network, its cost and memory, and the data."""

from __future__ import annotations

import argparse
from typing import Any

from mmengine.config import Config

from mmnetaug.analysis.cost import pipeline_size
from mmnetaug.analysis.memory import kilobytes, measure_footprint
from mmnetaug.config import without_netaug
from mmnetaug.datasets import check_data, fill_config, find_unlisted
from mmnetaug.deploy.latency import RUNTIMES, measure_latency
from mmnetaug.errors import DataError, UserError

from .build import build_model, without_teacher
from .input_size import set_input_size
from .preflight import inspect_network


def describe(args: argparse.Namespace, cfg: Config) -> dict[str, Any]:
    """Prints the report; returns its figures."""
    reports, unlisted, problem = [], [], None
    try:
        fill_config(cfg, args.data_root)
        reports = check_data(cfg)
        unlisted = find_unlisted(cfg)
    except DataError as error:  # a config can be described without its data
        problem = str(error)
    if args.size and pipeline_size(cfg):
        set_input_size(cfg, args.size, ("test",))
    cfg = without_teacher(cfg)
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
        plain = without_netaug(cfg.model)
        if plain != cfg.model:
            cfg.model = plain
            model = build_model(cfg)
        latency = measure_latency(model.eval(), network.cost.input_shape, args.tflite_python)
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
