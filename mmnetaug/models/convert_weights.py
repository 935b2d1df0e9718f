"""Converts classifier checkpoints of the NetAug authors, torchvision and timm.

All these networks are chains of layers that differ only in names. The layers of a foreign state dict are sorted into
the order of the forward pass and paired with those of our network; the shapes of each pair must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch
from mmpretrain.models.backbones.mobilenet_v2 import InvertedResidual
from torch import Tensor, nn

from mmnetaug.errors import CheckpointError

from .tinyml import InvertedBottleneck

# Submodules of a module in the order of the forward pass; the first row that contains all of them is used.
_FORWARD_ORDER = (
    # the authors' code: https://github.com/mit-han-lab/tinyml, netaug/models/base
    ("backbone", "head"),
    ("input_stem", "stages"),
    ("op_list",),
    ("inverted_conv", "depth_conv", "se_layer", "point_conv"),
    ("reduce_conv", "expand_conv"),
    ("conv", "norm"),
    ("linear",),
    # torchvision's MobileNetV2 and MobileNetV3, whose other modules are numbered
    ("features", "classifier"),
    ("block",),
    ("fc1", "fc2"),
    # timm's
    ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "classifier"),
    ("conv_dw", "bn1", "se", "conv_pw", "bn2"),
    ("conv_pw", "bn1", "conv_dw", "bn2", "se", "conv_pwl", "bn3"),
    ("conv", "bn1"),
    ("conv_reduce", "conv_expand"),
)
_TORCHVISION_V3_EPS = 1e-3  # of its batch norms; all others use PyTorch's default
# Layers of ours that may be wider than theirs: a squeeze-and-excitation of ours has at least 16 channels, and a
# classifier's features never shrink with the width; torchvision's MobileNetV3 has neither rule.
_WIDER_OUTPUTS = re.compile(r".*\.se\.conv1\.conv|backbone\.stages\.\d+\.2\.conv")
_WIDER_INPUTS = re.compile(r".*\.se\.conv2\.conv|head\.fc")
_COUNTER = "num_batches_tracked"  # absent from old checkpoints, and nothing depends on it


def convert_classifier(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Renames and checks the weights of a foreign classifier; those of mmpretrain's own networks stay as they are.

    With the result, ``model`` computes what the foreign network computes in evaluation mode. Two details are adapted:
    a different epsilon of batch norms is added to their running variance, and where our squeeze-and-excitation or
    features are wider, the additional channels are read with zero weights.

    Args:
        checkpoint: State dict, or a dict that holds one under ``state_dict``.
        model: Plain classifier of the same architecture, width and number of classes. It is not changed.

    Returns:
        A state dict that loads strictly into ``model``.

    Raises:
        CheckpointError: The layers are named in no known way, or are not those of ``model``.
    """
    given = checkpoint.get("state_dict", checkpoint)
    if not isinstance(given, Mapping):
        raise CheckpointError(f"its state_dict is a {type(given).__name__}")
    state = dict(model.state_dict())
    if given.keys() == state.keys():  # OpenMMLab's, whose layers are ours
        for name, value in given.items():
            if getattr(value, "shape", None) != state[name].shape:
                theirs, ours = (tuple(getattr(of, "shape", ())) for of in (value, state[name]))
                raise CheckpointError(f"{name} is {theirs} in the checkpoint and {ours} in the network")
        return dict(given)
    foreign = [(path, {name: given[f"{path}.{name}"] for name in names}) for path, names in _layers(given)]
    eps = _TORCHVISION_V3_EPS if any(".block." in path for path, _ in foreign) else None
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    own = [(path, module) for path, module in model.named_modules() if isinstance(module, kinds)]
    for (source, tensors), (target, module) in zip_longest(foreign, own, fillvalue=(None, None)):
        if source is None or target is None:
            raise CheckpointError(
                f"this is a checkpoint of another network: it has {len(foreign)} layers, and the config's {len(own)}"
            )
        if eps is not None and "running_var" in tensors:
            tensors = {**tensors, "running_var": tensors["running_var"] + (eps - module.eps)}
        needed = {name for name in module.state_dict() if name != _COUNTER}
        if needed != tensors.keys() - {_COUNTER}:
            raise CheckpointError(
                f"this is a checkpoint of another network: {source} holds {_listed(tensors)}, but {target}, "
                f"which comes at its place in the config's, {_listed(needed)}"
            )
        for name, value in tensors.items():
            key = f"{target}.{name}"
            fitted = _fit(value, state[key], target)
            if fitted is None:
                raise CheckpointError(
                    f"this is a checkpoint of another network, or of another width or number of classes: "
                    f"{source}.{name} is {tuple(value.shape)}, and {key} of the config's {tuple(state[key].shape)}"
                )
            state[key] = fitted
    _check_shortcuts(model, given)
    return state


def _layers(state: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yields path and tensor names of each layer of a foreign state dict, in the order of the forward pass."""
    tree: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{key!r} is a {type(value).__name__}: no state dict, which holds tensors alone")
        *path, name = key.split(".")
        if not path:
            raise _unknown_names([key])
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = None  # a tensor
    yield from _walk(tree, "")


def _walk(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, list[str]]]:
    tensors = [name for name, child in node.items() if child is None]
    children = [name for name, child in node.items() if child is not None]
    if tensors:
        yield path, tensors
    if all(name.isdigit() for name in children):
        children.sort(key=int)
    else:
        order = next((row for row in _FORWARD_ORDER if set(children) <= set(row)), None)
        if order is None:
            raise _unknown_names(f"{path}.{name}".lstrip(".") for name in children)
        children.sort(key=order.index)
    for name in children:
        yield from _walk(node[name], f"{path}.{name}".lstrip("."))


def _unknown_names(layers: Iterable[str]) -> CheckpointError:
    return CheckpointError(
        f"the layers {_listed(layers)} are named neither as the NetAug authors' code names them, nor as torchvision's "
        "or timm's MobileNetV2 and MobileNetV3"
    )


def _check_shortcuts(model: nn.Module, given: Mapping[str, Any]) -> None:
    """Rejects widths at which the networks differ in a shortcut, which has no weights and is in no state dict.

    torchvision, timm and mmpretrain add a block's input wherever the shapes allow it. The authors and ``TinyNet`` do
    not in the first block of a stage, except for the very first one of MobileNetV3.
    """
    authors = any(".op_list." in key for key in given)
    gated = any(".se_layer." in key for key in given)
    for path, block in model.named_modules():
        if isinstance(block, InvertedBottleneck):
            ours, convs = block.shortcut, (block.expand_conv or block.depthwise_conv, block.project_conv)
            possible = block.depthwise_conv.stride == (1, 1) and convs[0].in_channels == convs[1].out_channels
        elif isinstance(block, InvertedResidual):
            ours = possible = block.use_res_connect
        else:
            continue
        first = path.endswith(".0") and not (gated and path == "backbone.stages.0.0")
        if ours != (possible and not (authors and first)):
            raise CheckpointError(f"at this width a shortcut around {path} is in one of the two networks alone")


def _fit(value: Tensor, own: Tensor, layer: str) -> Tensor | None:
    """Returns ``value`` in the shape of ``own``, the tensor of our ``layer``, or None if it does not fit."""
    if value.dim() == 2 and own.dim() == 4:  # a linear layer after pooling is a 1x1 convolution of ours
        value = value[:, :, None, None]
    if value.shape == own.shape:
        return value.clone()
    differing = [dim for dim, (theirs, ours) in enumerate(zip(value.shape, own.shape, strict=False)) if theirs != ours]
    if value.dim() != own.dim() or any(value.shape[dim] > own.shape[dim] for dim in differing):
        return None
    if differing == [0] and _WIDER_OUTPUTS.fullmatch(layer):
        fitted = own.clone()
    elif differing == [1] and _WIDER_INPUTS.fullmatch(layer):
        fitted = torch.zeros_like(own)
    else:
        return None
    fitted[tuple(map(slice, value.shape))] = value
    return fitted


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
