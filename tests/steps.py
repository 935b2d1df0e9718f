"""A single NetAug step on a detector, and what its weights should be by independent plain networks."""

from __future__ import annotations

import copy

import torch
from mmengine.registry import OPTIM_WRAPPERS
from networks import loss_of, plain_at, scatter_gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

RATE = 0.01


def wrapper(model: nn.Module, type_: str = "mmnetaug.NetAugOptimWrapper", optimizer=None, **kwargs):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=RATE)
    return OPTIM_WRAPPERS.build(dict(type=type_, optimizer=optimizer, **kwargs))


def step(model: nn.Module, data: dict, optim_wrapper) -> dict:
    """``BaseModel.train_step`` behind the data preprocessor."""
    with optim_wrapper.optim_context(model):
        losses = model(**copy.deepcopy(data), mode="loss")
    loss, log = model.parse_losses(losses)
    optim_wrapper.update_params(loss)
    return log


def gradients(elastic: nn.Module, plain: nn.Module, data: dict, widths: list[int]) -> dict[str, torch.Tensor]:
    """Gradients of an independent plain network of these widths, at their places in the stored parameters."""
    network = plain_at(elastic, plain, widths)
    loss_of(network, data).backward()
    return scatter_gradients(elastic, network, widths)


def assert_updated(elastic: nn.Module, expected: dict[str, torch.Tensor], tolerance: float = 1e-10) -> None:
    for name, parameter in elastic.named_parameters():
        error = (parameter.detach() - expected[name]).abs().max().item()
        assert error <= tolerance * max(1.0, expected[name].abs().max().item()), (name, error)


def spoil_augmented_loss(elastic: nn.Module, times: int = 1000) -> None:
    """Makes the loss infinite at all widths but the base ones, for the first ``times`` augmented passes."""
    parse, space, left = elastic.parse_losses, elastic.elastic, [times]

    def parse_losses(losses: dict) -> tuple:
        loss, log = parse(losses)
        if [group.width for group in space.groups] != space.base() and left[0]:
            left[0] -= 1
            loss = loss * torch.inf
        return loss, log

    elastic.parse_losses = parse_losses


def peak_of(run) -> int:
    """Bytes of tensors made and alive at the peak of a call."""
    live, most = WeakIdKeyDictionary(), 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal most
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    live[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
            most = max(most, sum(live.values()))
            return out

    with Watch():
        run()
    return most
