"""Whether the data keep up with training: what an image costs in each transform of a pipeline, and in a step.

    python benchmarks/loader.py configs/yolov3_mbv3_w035_netaug_digits.py
    python benchmarks/loader.py configs/yolov3_mbv3_w035_netaug_custom.py --data-root PATH

Loading and step are given as CPU time on one core, which a busy machine disturbs little; their ratio says how many
loading processes one training thread needs. The images a second of both together, with the config's workers, are
wall-clock time: only an idle machine gives a figure worth having.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this folder's coverage.py would pass for the package of that name

import torch

import mmnetaug  # noqa: F401  (registers everything)
from mmnetaug.apis.build import build_runner
from mmnetaug.apis.cli import config_parser, run_tool
from mmnetaug.apis.load import load_config
from mmnetaug.datasets import fill_config


def cpu_ms(images: int, run: Callable[[], Any]) -> float:
    """CPU time of this process in ``run``, in milliseconds an image."""
    begin = time.process_time()
    run()
    return round(1000 * (time.process_time() - begin) / images, 3)


def transforms(dataset: Any, images: int) -> dict[str, float]:
    """CPU milliseconds an image, transform by transform."""
    while hasattr(dataset, "datasets"):
        dataset = dataset.datasets[0]
    spent: dict[str, float] = {}
    for number in range(images):
        data = dataset.get_data_info(number % len(dataset))
        for place, transform in enumerate(dataset.pipeline.transforms):
            begin = time.process_time()
            data = transform(data)
            name = f"{place}.{type(transform).__name__}"
            spent[name] = spent.get(name, 0.0) + time.process_time() - begin
            if data is None:  # dropped: training draws another image
                break
    return {name: round(1000 * seconds / images, 3) for name, seconds in spent.items()}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Print all figures of one config; returns them."""
    cfg = load_config(args)
    fill_config(cfg, args.data_root)
    cfg.log_level = "ERROR"
    runner = build_runner(cfg)
    loader = runner.build_dataloader(cfg.train_dataloader)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.call_hook("before_run")
    runner.model.train()
    dataset, batches = loader.dataset, itertools.chain.from_iterable(itertools.repeat(loader))

    def step(data: Any) -> None:
        runner.model.train_step(data, optim_wrapper=runner.optim_wrapper)

    batch = next(batches)
    size, count = len(batch["inputs"]), args.batches
    step(batch)
    loading = cpu_ms(size * 4, lambda: [dataset[number % len(dataset)] for number in range(size * 4)])
    training = cpu_ms(size * count, lambda: [step(batch) for _ in range(count)])
    begin = time.perf_counter()
    for data in itertools.islice(batches, count):
        step(data)
    together = time.perf_counter() - begin
    figures = {
        "batch": size,
        "workers": loader.num_workers,
        "threads": torch.get_num_threads(),
        "loading, CPU ms an image": loading,
        "step, CPU ms an image": training,
        "processes needed": round(loading / training, 3),
        "both, images a second": round(size * count / together, 1),
        "transforms, CPU ms an image": transforms(dataset, 64),
    }
    print(json.dumps(figures, indent=2))
    return figures


def main() -> int:
    parser = config_parser(__doc__)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--json", metavar="PATH", help="also write the figures; - for standard output alone")
    return run_tool(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
