"""Lean activations against the stock ones."""

from __future__ import annotations

import copy

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


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 1, 1), (5, 2, 1), (3, (2, 1), 1), (7, 2, 2)])
def test_depthwise_gradients_in_bfloat16(kernel, stride, dilation):
    """Against float64 on the same rounded images and weights: as close as the stock kernels, or closer."""

    def run(lean: bool, dtype: torch.dtype) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layer = nn.Conv2d(16, 16, kernel, stride, kernel // 2, dilation, groups=16, bias=False)
        with torch.no_grad():
            layer.weight.copy_(layer.weight.bfloat16())
        if lean:
            make_lean(nn.Sequential(layer))
        layer = copy.deepcopy(layer).to(dtype)  # as an EMA copy would be made
        x = torch.randn(4, 16, 15, 17).bfloat16().to(dtype).contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32):
            out = layer(x)
        weights = torch.linspace(-1, 1, out.numel()).view_as(out).bfloat16()
        (out * weights.to(out.dtype)).sum().backward()
        return [out.detach(), x.grad, layer.weight.grad]

    exact, stock, ours = run(False, torch.float64), run(False, torch.float32), run(True, torch.float32)
    assert torch.equal(ours[0], stock[0])
    for reference, theirs, mine in zip(exact[1:], stock[1:], ours[1:], strict=True):
        error, allowed = (mine - reference).abs().max(), (theirs - reference).abs().max()
        assert error <= 1.5 * allowed + 1e-6 and error <= 0.01 * reference.abs().max()
    for one, other in zip(run(True, torch.float64), exact, strict=True):
        assert torch.equal(one, other)  # without autocast nothing changes
