"""Plain networks: cost against the paper's figures, taps, parts that are built, gradients, initialisation, losses."""

import math

import pytest
import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmdet.models import YOLOV3Head
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from mmpretrain.models.backbones import MobileNetV2 as StockMobileNetV2
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import nn

from mmnetaug.models import DepthwiseYOLOV3Head, DropBlock, MobileNetV2, TinyNet
from mmnetaug.models.tinyml import round8


def v3(**kwargs):
    return dict(type="mmnetaug.TinyNet", arch="mobilenet_v3_large", widen_factor=0.35, **kwargs)


def v2(**kwargs):
    return dict(type="mmnetaug.MobileNetV2", widen_factor=0.35, **kwargs)


def tiny(arch, **kwargs):
    return dict(type="mmnetaug.TinyNet", arch=arch, **kwargs)


def build(registry, scope, config):
    """Builds in its library's scope, whatever an earlier test has left as the default."""
    with DefaultScope.overwrite_default_scope(scope):
        return registry.build(config)


def detector(backbone, channels, num_classes):
    return build(
        MMDET_MODELS,
        "mmdet",
        dict(
            type="YOLOV3",
            backbone=backbone,
            neck=dict(
                type="mmnetaug.DepthwiseYOLOV3Neck", num_scales=3, in_channels=channels, out_channels=[176, 88, 48]
            ),
            bbox_head=head_config(num_classes=num_classes),
            train_cfg=ASSIGNER,
        ),
    )


ASSIGNER = dict(assigner=dict(type="GridAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5))


def head_config(**kwargs):
    losses = {name: dict(type="CrossEntropyLoss", use_sigmoid=True, reduction="sum") for name in ("cls", "conf", "xy")}
    return dict(
        type="mmnetaug.DepthwiseYOLOV3Head",
        in_channels=[176, 88, 48],
        out_channels=[352, 176, 96],
        loss_wh=dict(type="L1Loss", reduction="sum"),
        **{f"loss_{name}": loss for name, loss in losses.items()},
        **kwargs,
    )


@pytest.mark.parametrize("backbone", [v2(out_indices=(2, 4, 5)), v3(out_indices=(2, 4, 5))])
def test_detector_has_no_parameter_without_gradient(backbone):
    torch.manual_seed(0)
    model = detector(backbone, [56, 40 if "arch" in backbone else 32, 16], num_classes=3)
    model.init_weights()
    loss = sum_losses(model, size=64)
    assert loss.isfinite()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def sum_losses(model, size):
    samples = []
    for _ in range(2):
        sample = DetDataSample(
            gt_instances=InstanceData(bboxes=torch.tensor([[4.0, 6.0, 30.0, 44.0]]), labels=torch.tensor([1])),
            metainfo=dict(img_shape=(size, size), batch_input_shape=(size, size)),
        )
        samples.append(sample)
    losses = model.loss(torch.randn(2, 3, size, size), samples)
    return sum(level for levels in losses.values() for level in levels)


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [
        (v2(out_indices=(2, 4, 5)), [16, 32, 56]),
        (v3(out_indices=(2, 4, 5)), [16, 40, 56]),
        (tiny("mcunet", out_indices=(2, 4, 5)), [24, 48, 96]),
        (tiny("proxyless_mobile", out_indices=(5, 2, 4)), [40, 96, 192]),  # returned in the order of the strides
    ],
)
def test_taps_are_the_last_stages_of_strides_8_16_32(backbone, channels):
    net = MMDET_MODELS.build(backbone)
    net.eval()  # returns None where the stock class does
    outs = net(torch.zeros(1, 3, 64, 96))
    assert [tuple(out.shape) for out in outs] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize(("arch", "channels"), [("mobilenet_v3_large", 1280), ("mobilenet_v2_tiny", 448)])
@pytest.mark.parametrize("widen_factor", [0.35, 1.0])
def test_features_of_the_classifier_never_shrink(arch, channels, widen_factor):
    (out,) = TinyNet(arch, widen_factor).eval()(torch.zeros(1, 3, 64, 64))
    assert out.shape[1] == channels


def test_mobilenet_v2_is_the_stock_network_cut_off():
    torch.manual_seed(0)
    stock, cut = StockMobileNetV2(0.35, out_indices=(2, 4, 5)), MobileNetV2(widen_factor=0.35, out_indices=(2, 4, 5))
    unused = cut.load_state_dict(stock.state_dict(), strict=False).unexpected_keys
    assert cut.state_dict().keys() < stock.state_dict().keys()
    assert {name.split(".")[0] for name in unused} == {"layer7", "conv2"}
    stock.eval(), cut.eval()
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(cut(x), stock(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("arch", ["mobilenet_v2_tiny", "proxyless_mobile", "mcunet", "mobilenet_v3_large"])
def test_shortcuts_join_equal_widths_within_a_stage(arch):
    net = TinyNet(arch, widen_factor=0.35)
    for number, stage in enumerate(net.stages):
        for index, block in enumerate(m for m in stage if hasattr(m, "shortcut")):
            depthwise, project = block.depthwise_conv.conv, block.project_conv.conv
            read = block.expand_conv.conv.in_channels if block.expand_conv else depthwise.in_channels
            same = depthwise.stride == (1, 1) and read == project.out_channels
            # MobileNetV3's depthwise-separable block continues the stem; elsewhere the widths differ there
            assert block.shortcut == (same and (index > 0 or number == 0))


def test_weights_start_as_he_normal_with_fan_out():
    torch.manual_seed(0)
    net = TinyNet("mobilenet_v3_large")
    net.init_weights()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            std = math.sqrt(2 / fan_out)
            assert module.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(module.weight.numel()))


@pytest.mark.parametrize("arch", ["mobilenet_v3_large", "mcunet"])
def test_pretrained_weights_are_loaded_from_a_classifier(tmp_path, arch):
    torch.manual_seed(0)
    whole = TinyNet(arch)
    path = tmp_path / "classifier_tiny.pth"
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in whole.state_dict().items()}}, path)
    init = dict(type="Pretrained", checkpoint=str(path), prefix="backbone.")
    net = TinyNet(arch, out_indices=(2, 4, 5), init_cfg=init)
    net.init_weights()
    for name, value in net.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(arch="mobilenet_v9"), "arch must be one of mobilenet_v3_large"),
        (dict(arch="mcunet", out_indices=(7,)), "out_indices of mcunet must be from 0 to 6"),
        (dict(arch="mcunet", out_indices=()), "out_indices of mcunet must be from 0 to 6"),
    ],
)
def test_bad_arguments_say_what_is_possible(arguments, message):
    with pytest.raises(ValueError, match=message):
        TinyNet(**arguments)


@pytest.mark.parametrize(
    ("channels", "rounded"), [(5.6, 8), (8.4, 8), (11.2, 16), (22.4, 24), (33.6, 32), (39.2, 40), (179.2, 176)]
)
def test_widths_round_to_8_and_never_down_by_a_tenth(channels, rounded):
    assert round8(channels) == rounded
    assert rounded >= 0.9 * channels


def test_yolo_has_no_dense_kxk_convolution():
    model = detector(v3(out_indices=(2, 4, 5)), [56, 40, 16], num_classes=20)
    convs = [m for part in (model.neck, model.bbox_head) for m in part.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.kernel_size == (1, 1) or conv.groups == conv.in_channels for conv in convs)
    separable = [m for m in model.modules() if isinstance(m, DepthwiseSeparableConvModule)]
    assert len(separable) == 3 * 2 + 3  # two per detection block, one bridge per scale
    assert {m.activate.negative_slope for m in model.neck.modules() if isinstance(m, ConvModule)} == {0.1}


@pytest.mark.usefixtures("mmdet_scope")
def test_head_starts_with_he_normal_bridges_and_small_predictions():
    torch.manual_seed(0)
    head = MMDET_MODELS.build(head_config(num_classes=20))
    head.init_weights()
    assert head.convs_pred[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    pointwise = head.convs_bridge[0].pointwise_conv.conv.weight
    assert pointwise.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.1**2) / 352), rel=0.05)
    assert torch.sigmoid(head.convs_pred[0].bias.view(3, -1)[:, 5:]).mean().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.usefixtures("mmdet_scope")
@pytest.mark.parametrize("images", [1, 3])
def test_head_averages_mmdets_losses_over_images(images):
    torch.manual_seed(0)
    head = MMDET_MODELS.build(head_config(num_classes=4, train_cfg=ASSIGNER))
    assert isinstance(head, DepthwiseYOLOV3Head)
    maps = [torch.randn(images, 3 * 9, n, n) for n in (2, 4, 8)]
    boxes = [
        InstanceData(bboxes=torch.tensor([[5.0, 5.0, 40.0, 50.0]]), labels=torch.tensor([i])) for i in range(images)
    ]
    metas = [dict(img_shape=(64, 64))] * images
    ours = head.loss_by_feat(maps, boxes, metas)
    theirs = YOLOV3Head.loss_by_feat(head, maps, boxes, metas)
    for name in theirs:
        for mean, total in zip(ours[name], theirs[name], strict=True):
            assert mean.item() == pytest.approx(total.item() / images, rel=1e-6)


def test_dropout_head_is_the_stock_head_in_evaluation():
    torch.manual_seed(0)
    config = dict(num_classes=5, in_channels=64)
    head = build(MMPRETRAIN_MODELS, "mmpretrain", dict(type="mmnetaug.DropoutClsHead", dropout=0.75, **config))
    stock = build(MMPRETRAIN_MODELS, "mmpretrain", dict(type="LinearClsHead", **config))
    stock.load_state_dict(head.state_dict())
    feats = (torch.ones(4000, 64),)
    assert torch.equal(head.eval()(feats), stock(feats))
    kept = head.train().pre_logits(feats)
    assert (kept == 0).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert kept.max() == 4


def test_drop_block_blanks_squares_in_all_channels_and_keeps_the_mean():
    torch.manual_seed(0)
    block = DropBlock(drop_prob=0.1, block_size=5).train()
    x = torch.ones(2000, 3, 9, 9)
    dropped = block(x) == 0
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    # a position stays if none of the up to 25 centres around it is drawn, each with probability p / 25
    reach = torch.tensor([3, 4, 5, 5, 5, 5, 5, 4, 3])
    chance = 1 - (1 - 0.1 / 25) ** (reach[:, None] * reach)
    torch.testing.assert_close(dropped[:, 0].float().mean(0), chance, rtol=0, atol=0.03)
    alone = next(image for image in dropped[:, 0] if image.sum() == 25)
    rows, columns = alone.nonzero().T
    assert rows.max() - rows.min() == columns.max() - columns.min() == 4
    assert block(x).mean().item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(block.eval()(x), x)
    with pytest.raises(ValueError, match="odd"):
        DropBlock(0.1, 4)


def test_drop_block_follows_the_stages_of_stride_16_and_32():
    drop = dict(type="mmnetaug.DropBlock", drop_prob=0.5, block_size=3)
    net = TinyNet("mobilenet_v2_tiny", drop_block=drop)
    assert list(net.drop_blocks) == ["3", "4", "5", "6"]
    assert net.state_dict().keys() == TinyNet("mobilenet_v2_tiny").state_dict().keys()
    dropped = []
    for block in net.drop_blocks.values():
        block.register_forward_hook(lambda module, inputs, output: dropped.append((output == 0).float().mean().item()))
    net.train()(torch.randn(2, 3, 144, 144))
    assert all(0.2 < share < 0.8 for share in dropped)
    dropped.clear()
    net.eval()(torch.randn(2, 3, 144, 144))
    assert max(dropped) < 0.01
