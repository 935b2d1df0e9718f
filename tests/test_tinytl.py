"""Tiny transfer learning: what learns, that it starts as the pre-trained network, and that it stores less."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmnetaug.apis.preflight import check_weights
from mmnetaug.errors import UserError
from mmnetaug.models.tinytl import BLOCKS, FrozenConv, FrozenNorm, LiteResidual

SIZE = 64
BACKBONES = {
    "mobilenet_v2": dict(type="MobileNetV2", widen_factor=0.35),
    "mobilenet_v3": dict(type="mmnetaug.TinyNet", arch="mobilenet_v3_large", widen_factor=0.35),
    "mcunet": dict(type="mmnetaug.TinyNet", arch="mcunet"),
}

spec = importlib.util.spec_from_file_location("tinytl", Path(__file__).parents[1] / "benchmarks/tinytl.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def config(name):
    channels = 160 if name == "mcunet" else 1280
    return dict(
        type="ImageClassifier",
        backbone=BACKBONES[name],
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=7, in_channels=channels),
    )


def build(name):
    """The plain classifier with norms that have seen something, and the one made for TinyTL with its weights."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        plain = MODELS.build(config(name))
        adapted = MODELS.build(dict(type="mmnetaug.TinyTL", model=config(name), input_size=SIZE))
    plain.train()
    with torch.no_grad():
        for _ in range(20):
            plain(torch.randn(8, 3, SIZE, SIZE))
    adapted.init_weights()  # as MMEngine's Runner does before it loads
    unused = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert not unused.unexpected_keys and all("lite_residual" in key for key in unused.missing_keys)
    return plain, adapted


@pytest.mark.parametrize("name", BACKBONES)
def test_it_starts_as_the_pretrained_network(name):
    plain, adapted = build(name)
    x = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(adapted.eval()(x), plain.eval()(x), rtol=1e-3, atol=1e-4)
    with torch.no_grad():  # layers take other ways without gradients, and are exported without
        torch.testing.assert_close(adapted(x), plain(x), rtol=1e-3, atol=1e-4)
        exported = torch.export.export(adapted, (x,)).module()
        torch.testing.assert_close(exported(x), plain(x), rtol=1e-3, atol=1e-4)
    # in training too: the statistics are fixed
    torch.testing.assert_close(adapted.train()(x), plain(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_biases_classifier_and_lite_residuals_learn_and_nothing_else(name):
    _, adapted = build(name)
    adapted.double().train()
    blocks = [module for module in adapted.modules() if isinstance(module, BLOCKS)]
    assert blocks and all(isinstance(block.lite_residual, LiteResidual) for block in blocks)
    optimizer = torch.optim.SGD(adapted.parameters(), lr=0.1)
    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    for _ in range(2):  # in the first step lite residuals end in a norm with a scale of zero
        optimizer.zero_grad()
        images = torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64)
        F.cross_entropy(adapted(images), torch.arange(4)).backward()
        optimizer.step()
    for key, value in adapted.state_dict().items():
        learns = key.endswith("bias") or "lite_residual" in key or key.startswith("head.")
        assert torch.equal(value, before[key]) != learns, key


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_are_those_of_stock_layers(name):
    """Of biases and classifier, against the plain network with fixed statistics."""
    plain, adapted = build(name)
    for model in (plain, adapted):
        torch.manual_seed(1)
        model.double().eval()
        images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
        F.cross_entropy(model(images), torch.arange(2)).backward()
    expected = dict(plain.named_parameters())
    compared = 0
    for key, parameter in adapted.named_parameters():
        if key in expected and parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[key].grad)
            compared += 1
    assert compared > 50


def test_lite_residual_kernels_shrink_to_their_maps():
    _, adapted = build("mobilenet_v2")
    kernels = [block.lite_residual.conv.conv.kernel_size[0] for block in adapted.modules() if isinstance(block, BLOCKS)]
    assert kernels[0] == 5 and kernels[-1] == 1  # maps of 32 and 2 pixels, pooled to 16 and 1


def test_frozen_norm_is_a_batch_norm_in_evaluation():
    norm = nn.BatchNorm2d(5)
    norm(torch.randn(8, 5, 4, 4))
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    x = torch.randn(2, 5, 4, 4)
    expected = norm.eval()(x)
    norm.__class__ = FrozenNorm
    torch.testing.assert_close(norm.train()(x), expected)


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_masked_activations_have_the_gradient_of_stock_ones(act):
    from mmnetaug.models.tinytl import _MASKED

    x = (torch.randn(200, dtype=torch.float64) * 5).requires_grad_()
    torch.testing.assert_close(_MASKED[act]()(x), act()(x))
    gradients = [torch.autograd.grad(layer(x).sin().sum(), x)[0] for layer in (_MASKED[act](), act())]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", BACKBONES)
def test_it_stores_less(name):
    figures = benchmark.compare(config(name), SIZE, batch=2)
    assert figures["tinytl"]["trainable"] < 0.35 * figures["full"]["trainable"]
    share = 0.6 if name == "mobilenet_v3" else 0.4  # hard swish stores its input
    assert figures["tinytl"]["stored_bytes"] < share * figures["full"]["stored_bytes"]


def test_stored_bytes_of_a_known_layer():
    """A convolution stores its input, and its weight is not counted."""
    layer = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    assert benchmark.stored_bytes(layer, x) == x.numel() * 4
    layer.__class__ = FrozenConv
    layer.weight.requires_grad = False
    assert benchmark.stored_bytes(layer, x.requires_grad_()) == 0


def test_pretrained_weights_need_not_hold_lite_residuals():
    plain, adapted = build("mcunet")
    line = check_weights(adapted, plain.state_dict(), "x.pth")
    assert line.startswith("weights: from x.pth; ") and line.endswith(" start anew (made to be added)")
    few = {key: value for key, value in plain.state_dict().items() if "stages.0" in key}
    with pytest.raises(UserError, match="another network"):
        check_weights(adapted, few, "x.pth")


def test_convolutions_that_pad_by_themselves_are_refused():
    model = dict(type="mmnetaug.SamePadding", model=config("mobilenet_v2"))
    with (
        DefaultScope.overwrite_default_scope("mmpretrain"),
        pytest.raises(ValueError, match=r"conv1\.conv is a Conv2dAdaptivePadding"),
    ):
        MODELS.build(dict(type="mmnetaug.TinyTL", model=model, input_size=SIZE))


def test_a_network_without_inverted_bottlenecks_is_refused():
    model = dict(type="ImageClassifier", backbone=dict(type="ResNet", depth=18))
    with (
        DefaultScope.overwrite_default_scope("mmpretrain"),
        pytest.raises(ValueError, match="ResNet has none"),
    ):
        MODELS.build(dict(type="mmnetaug.TinyTL", model=model, input_size=64))
