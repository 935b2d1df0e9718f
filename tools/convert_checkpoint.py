"""Convert an ImageNet checkpoint of the NetAug authors, torchvision or timm for a config of the same network.

A checkpoint of a wider network, theirs or mmpretrain's own, is cut to the config's width by --cut-from. The result is a
start for training: --cfg-options load_from=OUT, for the config itself or a detector with its backbone.
"""

from __future__ import annotations

import argparse
import copy
import sys

import torch
from mmengine.config import ConfigDict, DictAction
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmnetaug  # noqa: F401  (checks the environment, registers everything)
from mmnetaug.apis.build import reported_as_user_error
from mmnetaug.apis.cli import load_config, run_tool
from mmnetaug.apis.evaluation import without_netaug
from mmnetaug.checkpoint import read_checkpoint
from mmnetaug.elastic import cut_channels
from mmnetaug.errors import UserError
from mmnetaug.files import replaced_when_done
from mmnetaug.models.convert_weights import convert_classifier
from mmnetaug.models.tensor_mode import tensor_forward

IMAGE_SHAPE = (3, 64, 64)  # that networks are traced with; any would do


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of a classifier of the same network and number of classes")
    parser.add_argument("checkpoint", help="the state dict that they publish")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="override values of the config"
    )
    parser.add_argument(
        "--cut-from",
        type=float,
        metavar="WIDTH",
        help="width multiplier of the checkpoint, such as 1.0; its most important channels are kept "
        "(default: the config's own)",
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
    model = build(cfg.model)
    wide = model if args.cut_from is None else build(cfg.model, args.cut_from)
    try:
        state = convert_classifier(checkpoint, wide)
        if wide is not model:
            wide.load_state_dict(state)
            cut_channels(model, wide, tensor_forward, IMAGE_SHAPE)
            state = model.state_dict()
    except ValueError as error:  # CheckpointError included
        raise UserError(f"{args.checkpoint} does not fit {args.config}: {error}") from error
    with replaced_when_done(args.out) as temporary:
        torch.save({"state_dict": state, "meta": {}}, temporary)
    print(f"{args.out}: {len(state)} tensors of {args.checkpoint}, for the network of {args.config}")
    if wide is not model:
        print("its batch norms have the statistics of the wider network: train it before it is measured")


def build(model: ConfigDict, width: float | None = None) -> nn.Module:
    """The plain network of a config, with another width multiplier of the backbone if one is given."""
    plain = copy.deepcopy(without_netaug(model))
    if width is not None:
        plain.backbone.widen_factor = width
    torch.manual_seed(0)  # of channels that theirs lacks
    with reported_as_user_error("this config's network cannot be built"):
        return MODELS.build(plain)


if __name__ == "__main__":
    sys.exit(main())
