"""Does re-estimating the batch-norm statistics change a tiny network that was trained with NetAug?

The augmented pass leaves the running statistics alone, so nothing should be owed to them (the authors share them
between both passes and re-estimate them on 16 000 training images before each evaluation). This measures a checkpoint
as it is and after MMPretrain's own re-estimation on training images, several times with other augmentations, and what
the choice of test images alone makes of the figure (bootstrap over them).

    python benchmarks/batch_norm.py configs/yolov3_mbv3_w035_digits.py \\
        work_dirs/yolov3_mbv3_w035_netaug_digits/epoch_7_tiny.pth
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this folder's coverage.py would pass for the package of that name

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmnetaug.apis.cli import run_tool
from mmnetaug.checkpoint import read_checkpoint  # registers everything; before mmpretrain, which imports torchvision

from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats  # isort: skip


def measure(runner: Runner) -> tuple[float, list[Any], Any]:
    """The config's first metric on its test images, what the metric kept of each image, and the metric."""
    metric = runner.test_loop.evaluator.metrics[0]
    compute, kept = metric.compute_metrics, []

    def keep(results: list[Any]) -> dict[str, float]:
        kept.extend(results)
        return compute(results)

    metric.compute_metrics = keep
    figures = runner.test()
    metric.compute_metrics = compute
    return next(iter(figures.values())), kept, metric


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="the config without NetAug")
    parser.add_argument("checkpoint", help="a tiny checkpoint of a NetAug run")
    parser.add_argument("--samples", type=int, default=16000, help="training images to re-estimate on (as the authors)")
    parser.add_argument("--repeats", type=int, default=3, help="re-estimations, each with other augmentations")
    parser.add_argument("--resamples", type=int, default=200, help="bootstrap samples of the test images")
    parser.add_argument("--json", metavar="PATH", help="also write the figures; - for standard output alone")
    return run_tool(compare, parser.parse_args())


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Print the checkpoint's figures as it is and re-estimated; returns them."""
    config = Config.fromfile(args.config)
    config.load_from, config.resume, config.log_level = None, False, "WARNING"
    with tempfile.TemporaryDirectory() as work_dir:
        config.work_dir = work_dir
        runner = Runner.from_cfg(config)
        state = read_checkpoint(args.checkpoint)["state_dict"]
        runner.model.load_state_dict(state, strict=True)
        as_is, kept, metric = measure(runner)
        print(f"as trained: {as_is:.4f}", flush=True)
        generator = np.random.default_rng(0)
        resampled = []
        for _ in range(args.resamples):
            picked = generator.integers(len(kept), size=len(kept))
            resampled.append(next(iter(metric.compute_metrics([copy.copy(kept[i]) for i in picked]).values())))
        noise = statistics.stdev(resampled)
        print(f"bootstrap standard error over the {len(kept)} test images: {noise:.4f}", flush=True)
        loader, again = runner.build_dataloader(config.train_dataloader), []
        for seed in range(args.repeats):
            torch.manual_seed(seed)
            np.random.seed(seed)
            runner.model.load_state_dict(state)
            with torch.no_grad():
                update_bn_stats(runner.model.train(), loader, args.samples, logger="silent")
            again.append(measure(runner)[0])
            print(f"re-estimated: {again[-1]:.4f} ({again[-1] - as_is:+.4f})", flush=True)

    images = min(args.samples, len(loader.dataset))
    result = {"as_trained": as_is, "re_estimated": again, "standard_error": noise, "training_images": images}
    change = statistics.mean(again) - as_is
    print(f"mean change {change:+.4f}, {abs(change) / noise:.2f} standard errors")
    return result


if __name__ == "__main__":
    sys.exit(main())
