"""Lean activations against the stock ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from mmnetaug.engine.lean import make_lean


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.Hardswish, nn.SiLU])
@pytest.mark.parametrize("inplace", [True, False])
def test_lean_activations_compute_the_same_and_keep_less(activation, inplace):
    def run(lean: bool) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation(inplace), nn.Conv2d(8, 4, 1)).double()
        with torch.no_grad():
            network[1].weight.mul_(5)  # both ends of ReLU6 are met
        if lean:
            make_lean(network)
            make_lean(network)
        kept = WeakIdKeyDictionary()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = network(x)
        size = sum(kept.values())
        out.square().sum().backward()
        with torch.no_grad():
            evaluated = network(x)
        return [out, evaluated, *(p.grad for p in network.parameters())], size

    (stock, before), (ours, after) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(stock, ours, strict=True))
    assert after < before if activation is nn.ReLU6 and inplace else after == before
