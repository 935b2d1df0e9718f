"""The two initialisations of elastic networks."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmnetaug.elastic import Elastic, base_state_dict, make_elastic

MODEL = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=18, base_channels=16, stem_channels=16),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=5, in_channels=128),
)


def build(config):
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(config)


def elastic(model=MODEL, **kwargs):
    return build(dict(type="mmnetaug.NetAug", model=model, width=[1, 2], input_size=32, **kwargs))


def test_the_authors_is_kaiming_uniform_over_the_largest_network():
    torch.manual_seed(0)
    model = elastic(init="authors")
    model.init_weights()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and isinstance(layer, Elastic):
            weight = layer.stored("weight")
            bound = 1 / math.sqrt(weight[0].numel())
            assert bound * 0.9 < weight.abs().max() <= bound, name
    norm = model.backbone.layer1[0].bn1
    assert torch.equal(norm.stored("weight"), torch.ones_like(norm.stored("weight")))


def test_pretrained_weights_outlast_the_authors_init(tmp_path):
    plain = build(MODEL)
    torch.save({f"backbone.{name}": value for name, value in plain.backbone.state_dict().items()}, tmp_path / "x.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "x.pth"), prefix="backbone.")
    model = elastic({**MODEL, "backbone": {**MODEL["backbone"], "init_cfg": init}}, init="authors")
    model.init_weights()
    for name, value in base_state_dict(model.backbone).items():
        assert torch.equal(value, plain.backbone.state_dict()[name]), name


def test_an_unknown_init_is_refused():
    with pytest.raises(ValueError, match="'preserving' or 'authors'"):
        elastic(init="xavier")


def test_a_transposed_convolution_reads_new_channels_along_its_first_dimension():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).double()
    image = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected = net(image)
    space = make_elastic(net.float(), lambda model, x: model(x), (3, 9, 9), width=[1, 2], expand=[1, 2])
    assert not net[3].stored("weight")[8:].any() and net[3].stored("weight")[:, 4:].any()
    with space.at(space.largest()):
        torch.testing.assert_close(net.double()(image), expected)
