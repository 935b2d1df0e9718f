"""The work of ``tools/convert_checkpoint.py``: converts an ImageNet checkpoint of another project."""

from __future__ import annotations

import argparse
import copy

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmnetaug.checkpoint import read_checkpoint
from mmnetaug.elastic import cut_channels
from mmnetaug.errors import UserError
from mmnetaug.files import replaced_when_done
from mmnetaug.models.convert_weights import convert_classifier
from mmnetaug.models.tensor_mode import tensor_forward

from .build import reported_as_user_error
from .evaluation import without_netaug

IMAGE_SHAPE = (3, 64, 64)  # that networks are traced with; any would do


def convert_checkpoint(args: argparse.Namespace, cfg: Config) -> None:
    """Convert the checkpoint for the config's plain network and write it."""
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
