"""The work of ``tools/convert_checkpoint.py``: converts a checkpoint of another project or of a wider network."""

from __future__ import annotations

import argparse
import copy

import torch
from mmengine.config import Config, ConfigDict

from mmnetaug.checkpoint import read_checkpoint
from mmnetaug.config import iter_heads, without_netaug
from mmnetaug.elastic import cut_channels
from mmnetaug.errors import CheckpointError, UserError
from mmnetaug.files import replaced_when_done
from mmnetaug.models.convert_weights import convert_classifier
from mmnetaug.models.tensor_mode import tensor_forward

from .build import build_model
from .load import load_config

IMAGE_SHAPE = (3, 64, 64)  # that networks are traced with; any would do


def convert_checkpoint(args: argparse.Namespace, cfg: Config) -> None:
    """Convert the checkpoint for the config's plain network and write it."""
    checkpoint = read_checkpoint(args.checkpoint, args.trust_checkpoint)
    cfg.model, cfg.default_scope = without_netaug(cfg.get("model")), cfg.get("default_scope") or "mmpretrain"
    torch.manual_seed(0)  # of channels that theirs lacks
    if args.cut_from is None:
        model = wide = build_model(cfg)
        needs = args.config
    else:
        wide_cfg = copy.deepcopy(cfg)
        wide_cfg.model = wider(cfg.model, args.cut_from)
        for ours, theirs in zip(iter_heads(cfg.model), iter_heads(wide_cfg.model), strict=False):
            ours["num_classes"] = theirs["num_classes"]  # configs of one's own data are filled in for each run
        model, wide = build_model(cfg), build_model(wide_cfg)
        needs = f"the network of --cut-from {args.cut_from}"
    try:
        state = convert_classifier(checkpoint, wide)
    except CheckpointError as error:
        raise UserError(f"{args.checkpoint} does not fit {needs}: {error}") from error
    if wide is not model:
        wide.load_state_dict(state)
        try:
            cut_channels(model, wide, tensor_forward, IMAGE_SHAPE)
        except ValueError as error:
            raise UserError(f"{needs} cannot be cut to that of {args.config}: {error}") from error
        state = model.state_dict()
    with replaced_when_done(args.out) as temporary:
        torch.save({"state_dict": state, "meta": {}}, temporary)
    print(f"{args.out}: {len(state)} tensors of {args.checkpoint}, for the network of {args.config}")
    if wide is not model:
        print("its batch norms have the statistics of the wider network: train it before it is measured")


def wider(model: ConfigDict, cut_from: str) -> ConfigDict:
    """The model config of the wider network.

    Args:
        model: Config of the tiny network's model.
        cut_from: Width multiplier of the same classifier's backbone, or a config.

    Raises:
        UserError: There is no such config, it has no model, or a number is given for a detector.
    """
    try:
        width = float(cut_from)
    except ValueError:
        wide = load_config(argparse.Namespace(config=cut_from, cfg_options=None)).get("model")
        if not wide:
            raise UserError(f"{cut_from} has no model") from None
        return without_netaug(wide)
    wide = copy.deepcopy(model)
    if "in_channels" in (wide.get("neck") or {}):
        raise UserError("a detector's neck depends on the width: give the wide detector's config as --cut-from")
    wide.backbone.widen_factor = width
    return wide
