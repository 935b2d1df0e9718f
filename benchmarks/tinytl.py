"""What tiny transfer learning saves: trainable parameters, and what a training step keeps for its backward pass.

Every tensor that autograd saves in one forward pass is counted once, in bytes; parameters and buffers are not counted,
since they are there anyway::

    python benchmarks/tinytl.py configs/classification/transfer/mobilenet_v2_w035_cars.py --batch 8 --json -
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # in place of this folder, whose coverage.py would hide the package

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

import mmnetaug  # noqa: F401  (registers everything)
from mmnetaug.analysis.cost import find_input_shape
from mmnetaug.apis.cli import run_tool


def stored_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes of the tensors that one forward pass in training mode saves for the backward pass."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            saved[address] = tensor  # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.train()(images)
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del output
    return total


def compare(config: dict[str, Any], size: int, batch: int) -> dict[str, Any]:
    """Figures of full fine-tuning and of TinyTL.

    Args:
        config: Config of an mmpretrain classifier.
        size: Side of its images in pixels.
        batch: Images per step.
    """
    figures: dict[str, Any] = dict(input=size, batch=batch)
    adapted = dict(type="mmnetaug.TinyTL", model=config, input_size=size)
    for name, one in (("full", config), ("tinytl", adapted)):
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            model = MODELS.build(one)
        figures[name] = dict(
            trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
            parameters=sum(p.numel() for p in model.parameters()),
            stored_bytes=stored_bytes(model, torch.randn(batch, 3, size, size)),
        )
    return figures


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config of a classifier that is fine-tuned fully")
    parser.add_argument("--batch", type=int, default=8, help="images per step (%(default)s)")
    parser.add_argument("--json", metavar="PATH", help="also write the figures there; - is standard output, alone")
    return run_tool(benchmark, parser.parse_args(argv))


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Print the comparison; returns its figures."""
    cfg = Config.fromfile(args.config)
    size = find_input_shape(cfg, nn.Module(), None)[-1]
    figures = compare(cfg.model.to_dict(), size, args.batch)
    for name in ("full", "tinytl"):
        one = figures[name]
        print(f"{name:<7} {one['trainable']:>9} trainable parameters, {one['stored_bytes'] / 2**20:>7.2f} MiB stored")
    return {"config": args.config, **figures}


if __name__ == "__main__":
    sys.exit(main())
