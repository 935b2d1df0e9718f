"""Convert an ImageNet checkpoint of the NetAug authors, torchvision or timm for a config of the same network.

The result is a start for training: --cfg-options load_from=OUT, for the config itself or a detector with its backbone.
"""

from __future__ import annotations

import argparse
import sys

import torch
from mmengine.config import DictAction
from mmengine.registry import MODELS, init_default_scope

import mmnetaug  # noqa: F401  (checks the environment, registers everything)
from mmnetaug.apis.build import reported_as_user_error
from mmnetaug.apis.cli import load_config, run_tool
from mmnetaug.apis.evaluation import without_netaug
from mmnetaug.checkpoint import read_checkpoint
from mmnetaug.errors import CheckpointError, UserError
from mmnetaug.files import replaced_when_done
from mmnetaug.models.convert_weights import convert_classifier


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of a classifier of the same network, width and number of classes")
    parser.add_argument("checkpoint", help="the state dict that they publish")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="override values of the config"
    )
    parser.add_argument("--out", required=True, metavar="PATH.pth", help="where the converted checkpoint goes")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="let the checkpoint run code on this machine when it is loaded (it may hold any pickle)",
    )
    return run_tool(convert, parser.parse_args(argv))


def convert(args: argparse.Namespace) -> None:
    """Convert the checkpoint for the config's plain network and write it."""
    cfg = load_config(args)
    checkpoint = read_checkpoint(args.checkpoint, args.trust_checkpoint)
    if not cfg.get("model"):
        raise UserError(f"{args.config} has no model")
    init_default_scope(cfg.get("default_scope") or "mmpretrain")
    torch.manual_seed(0)  # of channels that theirs lacks
    with reported_as_user_error("this config's network cannot be built"):
        model = MODELS.build(without_netaug(cfg.model))
    try:
        state = convert_classifier(checkpoint, model)
    except CheckpointError as error:
        raise UserError(f"{args.checkpoint} does not fit {args.config}: {error}") from error
    with replaced_when_done(args.out) as temporary:
        torch.save({"state_dict": state, "meta": {}}, temporary)
    print(f"{args.out}: {len(state)} tensors of {args.checkpoint}, for the network of {args.config}")


if __name__ == "__main__":
    sys.exit(main())
