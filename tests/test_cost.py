"""The cost that is counted: against arithmetic by hand, and against a counter of another making."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from networks import BACKBONES, EXPAND, IMAGE, WIDTH, detector_config
from torch import Tensor, nn

from mmnetaug.analysis.cost import count_cost, find_input_shape
from mmnetaug.elastic import evaluating, find_spaces
from mmnetaug.models.tensor_mode import flatten_tensors, tensor_forward, untraced_readers

SHAPE = (1, 3, IMAGE, IMAGE)
CLASSIFIER = dict(
    type="mmpretrain.ImageClassifier",
    backbone=dict(type="mmpretrain.ResNet", depth=18, base_channels=8, stem_channels=8),
    neck=dict(type="mmpretrain.GlobalAveragePooling"),
    head=dict(type="mmpretrain.LinearClsHead", num_classes=10, in_channels=64),
)
FPN = dict(type="mmdet.FPN", in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5)
RESNET = dict(type="mmdet.ResNet", depth=18, base_channels=8, stem_channels=8)
TWO_STAGE = dict(
    type="mmdet.FasterRCNN",
    train_cfg=None,
    test_cfg=dict(rpn=None, rcnn=None),
    backbone=RESNET,
    neck=FPN,
    rpn_head=dict(
        type="mmdet.RPNHead",
        in_channels=16,
        feat_channels=16,
        anchor_generator=dict(type="mmdet.AnchorGenerator", scales=[8], ratios=[1.0], strides=[4, 8, 16, 32, 64]),
    ),
    roi_head=dict(
        type="mmdet.StandardRoIHead",
        bbox_roi_extractor=dict(
            type="mmdet.SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7),
            out_channels=16,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=dict(type="mmdet.Shared2FCBBoxHead", in_channels=16, fc_out_channels=32, num_classes=3),
    ),
)
DETR = dict(
    type="mmdet.DETR",
    num_queries=5,
    backbone=dict(RESNET, out_indices=(3,)),
    neck=dict(type="mmdet.ChannelMapper", in_channels=[64], kernel_size=1, out_channels=32, num_outs=1),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(self_attn_cfg=dict(embed_dims=32, num_heads=2), ffn_cfg=dict(embed_dims=32)),
    ),
    decoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32, num_heads=2),
            cross_attn_cfg=dict(embed_dims=32, num_heads=2),
            ffn_cfg=dict(embed_dims=32),
        ),
    ),
    positional_encoding=dict(num_feats=16, normalize=True),
    bbox_head=dict(
        type="mmdet.DETRHead",
        num_classes=3,
        embed_dims=32,
        # the default, given because DETRHead writes into it
        loss_cls=dict(type="mmdet.CrossEntropyLoss", bg_cls_weight=0.1, class_weight=1.0),
    ),
)
MODELS_UNDER_TEST = {
    **{name: detector_config(name) for name in BACKBONES},
    "classifier": CLASSIFIER,
    "backbone alone": RESNET,
    "two-stage": TWO_STAGE,
}


def build(config: dict) -> nn.Module:
    torch.manual_seed(0)
    scope = config.get("model", config)["type"].split(".")[0]
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(ConfigDict(copy.deepcopy(config)))


def macs_by_hooks(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates from the sizes of what convolutions and linear layers put out."""
    total = 0

    def count(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with evaluating(model), torch.no_grad():
        tensor_forward(model, x)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(
    ("layer", "macs", "params"),
    [
        (nn.Conv2d(3, 8, 3, padding=1, bias=False), 8 * 8 * 8 * 3 * 9, 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), 4 * 4 * 8 * 3 * 9, 8 * 3 * 9 + 8),
        (nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False), 8 * 8 * 3 * 25, 3 * 25),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)), 3 * 8 * 8 * 10, 3 * 8 * 8 * 10 + 10),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), 0, 6),
    ],
    ids=["conv", "strided with bias", "depthwise", "linear", "norm"],
)
def test_layers_by_hand(layer, macs, params):
    cost = count_cost(layer, (1, 3, 8, 8))
    assert (cost.macs, cost.params) == (macs, params)


@pytest.mark.parametrize("name", MODELS_UNDER_TEST)
def test_agrees_with_another_counter(name):
    model = build(MODELS_UNDER_TEST[name])
    cost = count_cost(model, SHAPE)
    assert cost.macs == macs_by_hooks(model, torch.rand(SHAPE)) > 0
    assert cost.params == sum(p.numel() for p in model.parameters())


def test_an_elastic_model_costs_what_its_tiny_network_does():
    plain = build(detector_config("resnet18"))
    elastic = build(dict(type="mmnetaug.NetAug", model=detector_config("resnet18"), width=WIDTH, expand=EXPAND))
    expected = count_cost(plain, SHAPE)
    assert count_cost(elastic, SHAPE) == expected
    [space] = find_spaces(elastic)
    with space.at(space.largest()):
        assert count_cost(elastic, SHAPE) == expected
        assert [group.width for group in space.groups] == space.largest()


def test_the_model_is_left_as_it_was():
    model = build(detector_config("resnet50"))
    model.backbone.layer1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    count_cost(model, SHAPE)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(type(after[name]) is Tensor and after[name].equal(tensor) for name, tensor in before.items())


def test_parts_that_depend_on_proposals_are_named():
    assert count_cost(build(TWO_STAGE), SHAPE).not_counted == ("roi_head",)
    assert count_cost(build(CLASSIFIER), SHAPE).not_counted == ()
    assert untraced_readers(build(DETR)) == ["transformer", "bbox_head"]


class Attention(nn.Module):
    """Attention of 64 positions with 3 channels, by torch's kernel or its module."""

    def __init__(self, module: bool = False) -> None:
        super().__init__()
        self.module = nn.MultiheadAttention(3, 1, batch_first=True) if module else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        if self.module is not None:
            return self.module(x, x, x, need_weights=False)[0]
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(("module", "macs"), [(False, 2 * 64 * 64 * 3), (True, 2 * 64 * 64 * 3 + 4 * 64 * 3 * 3)])
def test_products_of_attention_count(module, macs):
    assert count_cost(Attention(module), (1, 3, 8, 8)).macs == macs


class MatrixVector(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[0, 0] @ x[0, 0, 0]


class NeedsData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > x.mean().item()]


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (NeedsData(), (1, 3, 8, 8), "NeedsData at input .* cannot be counted"),
        (nn.Conv2d(3, 8, 9), (1, 3, 8, 8), "cannot be counted"),
        (MatrixVector(), (1, 3, 8, 8), "no formula for mv"),
        (nn.Conv2d(3, 8, 3), (3, 8, 8), "input shape must be"),
        (nn.Conv2d(3, 8, 3), (1, 3, 0, 8), "input shape must be"),
    ],
)
def test_no_wrong_count(model, shape, message):
    with pytest.raises(ValueError, match=message):
        count_cost(model, shape)


# --- input shape ------------------------------------------------------------------------------------------------------


class Preprocessed(nn.Module):
    def __init__(self, divisor: int = 1, channels: int = 3) -> None:
        super().__init__()
        self.data_preprocessor = nn.Module()
        self.data_preprocessor.pad_size_divisor = divisor
        self.data_preprocessor.register_buffer("mean", torch.zeros(channels, 1, 1))


@pytest.mark.parametrize(
    ("pipeline", "model", "expected"),
    [
        ([dict(type="Resize", scale=(416, 320))], nn.Identity(), (1, 3, 320, 416)),
        ([dict(type="mmdet.Resize", scale=(1333, 800))], Preprocessed(divisor=32), (1, 3, 800, 1344)),
        ([dict(type="Resize", scale=(640, 640)), dict(type="Pad", size=(640, 512))], nn.Identity(), (1, 3, 512, 640)),
        ([dict(type="Resize", scale=(300, 300)), dict(type="Pad", size_divisor=32)], nn.Identity(), (1, 3, 300, 300)),
        (
            [dict(type="ResizeEdge", scale=256), dict(type="CenterCrop", crop_size=224)],
            Preprocessed(),
            (1, 3, 224, 224),
        ),
        ([dict(type="EfficientNetCenterCrop", crop_size=160)], Preprocessed(channels=1), (1, 1, 160, 160)),
    ],
)
def test_input_shape(pipeline, model, expected):
    loader = dict(dataset=dict(type="RepeatDataset", times=1, dataset=dict(type="Any", pipeline=pipeline)))
    cfg = Config(dict(test_dataloader=loader))
    assert find_input_shape(cfg, model) == expected
    assert find_input_shape(cfg, model, (96, 64)) == (1, expected[1], 96, 64)


@pytest.mark.parametrize("cfg", [{}, dict(val_dataloader=dict(dataset=dict(pipeline=[dict(type="PackInputs")])))])
def test_input_shape_unknown(cfg):
    with pytest.raises(ValueError, match="input size is not in this config"):
        find_input_shape(Config(cfg), nn.Identity())


# --- tensor forward ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet_v2", "classifier", "backbone alone"])
def test_tensor_forward_is_the_tensor_mode(name):
    model = build(MODELS_UNDER_TEST[name])
    x = torch.rand(2, 3, IMAGE, IMAGE)
    expected = model(x) if name == "backbone alone" else model(x, mode="tensor")
    given = tensor_forward(model, x)
    assert len(given) == len(flatten_tensors(expected))
    assert all(a.equal(b) for a, b in zip(given, flatten_tensors(expected), strict=True))


def test_what_is_read_elsewhere_comes_out():
    model, x = build(TWO_STAGE).eval(), torch.rand(SHAPE)
    features = model.extract_feat(x)
    expected = flatten_tensors([features, model.rpn_head(features)])
    assert all(a.equal(b) for a, b in zip(tensor_forward(model, x), expected, strict=True))
    assert len(tensor_forward(build(DETR), x)) == 1  # the feature; encoder and decoder need more than the image


class Silent(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


def test_nested_outputs_keep_their_order():
    a, b, c = torch.rand(3)
    assert flatten_tensors({"x": [a, (b, None, "text")], "y": c}) == (a, b, c)
    with pytest.raises(TypeError, match="no tensor"):
        tensor_forward(Silent(), a)
