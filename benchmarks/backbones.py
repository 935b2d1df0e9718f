"""Every convolutional backbone of MMDetection and MMPretrain, as small configs; those left out, with the reason.

A class appears once per kind of block it can be built from. Networks are narrow and shallow where their class lets them
be, because a benchmark of channel handling needs every kind of layer, not every layer.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from unittest import mock

from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones.cspnet import DarknetBottleneck, ResNetBottleneck
from torch import nn

_STAGES = (0, 1, 2, 3)
_NARROW = dict(base_channels=8, stem_channels=8, out_indices=_STAGES)
_HRNET = dict(
    stage1=dict(num_modules=1, num_branches=1, block="BOTTLENECK", num_blocks=(1,), num_channels=(8,)),
    stage2=dict(num_modules=1, num_branches=2, block="BASIC", num_blocks=(1, 1), num_channels=(8, 12)),
    stage3=dict(num_modules=2, num_branches=3, block="BASIC", num_blocks=(1,) * 3, num_channels=(8, 12, 16)),
    stage4=dict(num_modules=1, num_branches=4, block="BASIC", num_blocks=(1,) * 4, num_channels=(8, 12, 16, 20)),
)
_MOBILEONE = dict(
    num_blocks=[1, 2, 2, 1],
    width_factor=[0.25, 0.25, 0.125, 0.125],
    num_conv_branches=[2, 1, 1, 2],
    num_se_blocks=[0, 0, 1, 1],
)
_DEPTHWISE = dict(type="DW", kernel_size=7)
_POOLFORMER = dict(layers=[1, 1, 1, 1], embed_dims=[8, 16, 24, 32], mlp_ratios=[4, 4, 4, 4])

CONVOLUTIONAL: dict[str, dict[str, dict]] = {
    "mmdet.CSPDarknet": {"": dict(deepen_factor=0.33, widen_factor=0.125)},
    "mmdet.CSPNeXt": {"": dict(deepen_factor=0.33, widen_factor=0.125)},
    "mmdet.Darknet": {"": dict(depth=9)},
    "mmdet.DetectoRS_ResNeXt": {"": dict(depth=50, groups=4, base_width=16, **_NARROW)},
    "mmdet.DetectoRS_ResNet": {
        "": dict(depth=50, **_NARROW),
        "sac": dict(
            depth=50,
            **_NARROW,
            conv_cfg=dict(type="ConvAWS"),
            sac=dict(type="SAC", use_deform=False),
            stage_with_sac=(False, True, True, True),
        ),
    },
    "mmdet.EfficientNet": {
        "b0": dict(arch="b-narrow", out_indices=(3, 4, 5)),
        "es": dict(arch="e-narrow", out_indices=(3, 4, 5)),
    },
    "mmdet.HRNet": {"": dict(extra=_HRNET)},
    "mmdet.HourglassNet": {
        "": dict(
            downsample_times=3, num_stacks=2, stage_channels=(8, 8, 12, 16), stage_blocks=(1, 1, 1, 2), feat_channel=8
        )
    },
    "mmdet.MobileNetV2": {"": dict(widen_factor=0.35)},
    "mmdet.RegNet": {"": dict(arch="regnetx_400mf", out_indices=_STAGES)},
    "mmdet.Res2Net": {"": dict(depth=50, base_width=8, scales=4, **_NARROW)},
    "mmdet.ResNeSt": {"": dict(depth=50, **_NARROW)},
    "mmdet.ResNeXt": {"": dict(depth=50, groups=4, base_width=16, **_NARROW)},
    "mmdet.ResNet": {
        "18": dict(depth=18, **_NARROW),
        "50": dict(depth=50, **_NARROW),
        "50-dcn": dict(
            depth=50,
            **_NARROW,
            dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
            stage_with_dcn=(False, False, False, True),
        ),
        "50-gn": dict(depth=50, **_NARROW, norm_cfg=dict(type="GN", num_groups=4)),
        "50-plugins": dict(
            depth=50,
            **_NARROW,
            plugins=[dict(cfg=dict(type="ContextBlock", ratio=1 / 4), position="after_conv3")],
        ),
        "50-dilated": dict(depth=50, **_NARROW, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    },
    "mmdet.ResNetV1d": {"": dict(depth=50, **_NARROW)},
    "mmdet.SSDVGG": {"": dict(depth=11, out_indices=(3, 4), out_feature_indices=(14, 24))},
    "mmdet.TridentResNet": {
        "": dict(
            depth=50,
            num_branch=3,
            test_branch_idx=1,
            trident_dilations=(1, 2, 3),
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            base_channels=8,
            stem_channels=8,
            out_indices=(2,),
        )
    },
    "mmpretrain.AlexNet": {"": dict()},
    "mmpretrain.CSPDarkNet": {"": dict(depth=9, out_indices=(2, 3, 4))},
    "mmpretrain.CSPResNeXt": {"": dict(depth=50, out_indices=(1, 2, 3))},
    "mmpretrain.CSPResNet": {"": dict(depth=9, out_indices=(1, 2, 3))},
    "mmpretrain.Conformer": {"": dict(arch=dict(embed_dims=48, channel_ratio=1, num_heads=3, depths=12))},
    "mmpretrain.ConvMixer": {"": dict(arch=dict(embed_dims=16, depth=3, patch_size=4, kernel_size=5))},
    "mmpretrain.ConvNeXt": {
        "": dict(arch=dict(depths=[1, 1, 2, 1], channels=[8, 12, 16, 24]), out_indices=_STAGES),
        "conv": dict(
            arch=dict(depths=[1, 1, 2, 1], channels=[8, 12, 16, 24]),
            out_indices=_STAGES,
            linear_pw_conv=False,
            gap_before_final_norm=False,
        ),
        "v2": dict(
            arch=dict(depths=[1, 1, 2, 1], channels=[8, 12, 16, 24]),
            use_grn=True,
            layer_scale_init_value=0.0,
            out_indices=_STAGES,
            gap_before_final_norm=False,
        ),
    },
    "mmpretrain.DenseNet": {"": dict(arch=dict(growth_rate=4, depths=[2, 2, 3, 2], init_channels=8))},
    "mmpretrain.EdgeNeXt": {
        "": dict(
            arch=dict(channels=[8, 16, 24, 32], depths=[2, 2, 2, 2], num_heads=[4, 4, 4, 4]),
            out_indices=_STAGES,
            use_pos_embd_csa=[False] * 4,
        )
    },
    "mmpretrain.EfficientFormer": {
        "": dict(
            arch=dict(
                layers=[1, 1, 1, 2], embed_dims=[8, 16, 24, 32], downsamples=[False, True, True, True], vit_num=1
            ),
            reshape_last_feat=True,
        )
    },
    "mmpretrain.EfficientNet": {"b0": dict(arch="b-narrow"), "es": dict(arch="e-narrow")},
    "mmpretrain.EfficientNetV2": {"b0": dict(arch="b0")},
    "mmpretrain.HRNet": {"": dict(arch="w18", extra=_HRNET)},
    "mmpretrain.HorNet": {
        "": dict(arch=dict(base_dim=16, depths=[1, 1, 2, 1], orders=[2, 3, 4, 5], dw_cfg=[_DEPTHWISE] * 4))
    },
    "mmpretrain.InceptionV3": {"": dict(), "aux": dict(aux_logits=True)},
    "mmpretrain.LeNet5": {"": dict()},
    "mmpretrain.LeViT": {"": dict(arch="128s", img_size=64)},
    "mmpretrain.MobileNetV2": {"": dict(widen_factor=0.35, out_indices=(2, 4, 6, 7))},
    "mmpretrain.MobileNetV3": {"small": dict(arch="small"), "large": dict(arch="large", out_indices=(6, 12, 16))},
    "mmpretrain.MobileOne": {"": dict(arch=_MOBILEONE, out_indices=_STAGES)},
    "mmpretrain.MobileViT": {"": dict(arch="xx_small")},
    "mmpretrain.PoolFormer": {"": dict(arch=_POOLFORMER, out_indices=(0, 2, 4, 6), frozen_stages=-1)},
    "mmpretrain.PyramidVig": {"": dict(arch="tiny")},
    "mmpretrain.RIFormer": {"": dict(arch=_POOLFORMER, out_indices=(0, 2, 4, 6))},
    "mmpretrain.RegNet": {"": dict(arch="regnetx_400mf", out_indices=_STAGES)},
    "mmpretrain.RepLKNet": {
        "": dict(
            arch=dict(
                large_kernel_sizes=[7, 7, 5, 5],
                layers=[1, 1, 1, 1],
                channels=[8, 16, 24, 32],
                small_kernel=3,
                dw_ratio=1,
            ),
            out_indices=_STAGES,
        )
    },
    "mmpretrain.RepMLPNet": {
        "": dict(arch=dict(channels=[8, 16, 32, 64], depths=[1, 1, 1, 1], sharesets_nums=[1, 4, 8, 16]), img_size=128)
    },
    "mmpretrain.RepVGG": {
        "A0": dict(arch="A0", base_channels=8, out_indices=_STAGES),
        "B1g2": dict(arch="B1g2", base_channels=4, out_indices=_STAGES),
        "D2se": dict(arch="D2se", base_channels=4, out_indices=_STAGES),
    },
    "mmpretrain.Res2Net": {"": dict(depth=50, base_width=8, scales=4, **_NARROW)},
    "mmpretrain.ResNeSt": {"": dict(depth=50, **_NARROW)},
    "mmpretrain.ResNeXt": {"": dict(depth=50, groups=4, width_per_group=16, **_NARROW)},
    "mmpretrain.ResNet": {"18": dict(depth=18, **_NARROW), "50": dict(depth=50, **_NARROW)},
    "mmpretrain.ResNetV1c": {"": dict(depth=50, **_NARROW)},
    "mmpretrain.ResNetV1d": {"": dict(depth=18, **_NARROW)},
    "mmpretrain.ResNet_CIFAR": {"": dict(depth=18, base_channels=8, out_indices=_STAGES)},
    "mmpretrain.SEResNeXt": {"": dict(depth=50, groups=4, width_per_group=16, se_ratio=4, **_NARROW)},
    "mmpretrain.SEResNet": {"": dict(depth=50, se_ratio=4, **_NARROW)},
    "mmpretrain.ShuffleNetV1": {
        "g3": dict(groups=3, widen_factor=0.5, out_indices=(0, 1, 2)),
        "g1": dict(groups=1, widen_factor=0.5, out_indices=(0, 1, 2)),
    },
    "mmpretrain.ShuffleNetV2": {"": dict(widen_factor=0.5, out_indices=(0, 1, 2, 3))},
    "mmpretrain.TinyViT": {
        "": dict(
            arch=dict(channels=[16, 24, 32, 48], num_heads=[2, 2, 4, 4], depths=[1, 1, 1, 1]),
            img_size=(64, 64),
            window_size=[4, 4, 4, 2],
        )
    },
    "mmpretrain.VAN": {
        "": dict(arch=dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], ffn_ratios=[4] * 4), out_indices=_STAGES)
    },
    "mmpretrain.VGG": {"11": dict(depth=11), "11-bn": dict(depth=11, norm_cfg=dict(type="BN"))},
    "mmpretrain.Vig": {"": dict(arch="tiny")},
}
"""Registered name -> variants of it -> arguments."""

_TRANSFORMER = "a transformer: attention is all that mixes positions"

LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(
        [
            "mmdet.PyramidVisionTransformer",
            "mmdet.PyramidVisionTransformerV2",
            "mmdet.SwinTransformer",
            "mmpretrain.BEiTViT",
            "mmpretrain.DaViT",
            "mmpretrain.DeiT3",
            "mmpretrain.DistilledVisionTransformer",
            "mmpretrain.HiViT",
            "mmpretrain.MViT",
            "mmpretrain.MixMIMTransformer",
            "mmpretrain.PCPVT",
            "mmpretrain.RevVisionTransformer",
            "mmpretrain.SVT",
            "mmpretrain.SwinTransformer",
            "mmpretrain.SwinTransformerV2",
            "mmpretrain.T2T_ViT",
            "mmpretrain.TNT",
            "mmpretrain.VisionTransformer",
            "mmpretrain.ViTEVA02",
            "mmpretrain.ViTSAM",
            "mmpretrain.XCiT",
        ],
        _TRANSFORMER,
    ),
    "mmpretrain.MlpMixer": "no convolutions but the patch embedding",
    "mmpretrain.TIMMBackbone": "no network, but a wrapper around those of another library",
    "mmpretrain.SparseConvNeXt": "ConvNeXt under SparK's mask: runs inside that pre-training only",
    "mmpretrain.SparseResNet": "ResNet under SparK's mask: runs inside that pre-training only",
}
"""Registered name -> why it is no convolutional backbone."""

NARROW: dict[str, dict] = {
    "mmdet.Darknet": {9: ((1, 2, 2, 1, 1), ((32, 16), (16, 24), (24, 32), (32, 48), (48, 64)))},
    "mmpretrain.CSPDarkNet": {
        9: dict(
            block_fn=DarknetBottleneck,
            in_channels=(32, 16, 24, 32, 48),
            out_channels=(16, 24, 32, 48, 64),
            num_blocks=(1, 2, 2, 1, 1),
            expand_ratio=(2, 1, 1, 1, 1),
            bottle_ratio=(2, 1, 1, 1, 1),
            has_downsampler=True,
            down_growth=True,
        )
    },
    "mmpretrain.CSPResNet": {
        9: dict(
            block_fn=ResNetBottleneck,
            in_channels=(64, 32, 48, 64),
            out_channels=(32, 48, 64, 96),
            num_blocks=(1, 2, 2, 1),
            expand_ratio=4,
            bottle_ratio=2,
            has_downsampler=(False, True, True, True),
            down_growth=False,
        )
    },
    "mmdet.EfficientNet": {"b-narrow": (0.25, 0.5, 64), "e-narrow": (0.25, 0.5, 64)},
    "mmpretrain.EfficientNet": {"b-narrow": (0.25, 0.5, 64), "e-narrow": (0.25, 0.5, 64)},
}
"""Entries to add to a class's own table of architectures (``arch_settings``), for widths that no argument sets."""

IMAGE = {
    "mmpretrain.AlexNet": 96,
    "mmpretrain.EfficientFormer": 224,
    "mmpretrain.InceptionV3": 96,
    "mmpretrain.InceptionV3 aux": 299,
    "mmpretrain.LeNet5": 32,
    "mmpretrain.PyramidVig": 224,
    "mmpretrain.RepMLPNet": 128,
    "mmpretrain.Vig": 224,
    "mmdet.DetectoRS_ResNet": 128,
    "mmdet.SSDVGG": 128,
}
"""Image sizes other than 64, by name or by name and variant."""


MIXES_CHANNELS = {
    "mmdet.DetectoRS_ResNet sac": "weights are normalised over their inputs",
    "mmpretrain.HorNet": "a layer norm written by hand",
    "mmpretrain.ConvNeXt v2": "the global response norm averages over channels",
}
"""Networks in which silent channels change the others, as in layer norms, but by code of their own."""


def registered() -> set[str]:
    """Names, library included, of all backbones that the two libraries register."""
    names = set()
    for library in ("mmdet", "mmpretrain"):
        importlib.import_module(f"{library}.models")
        for name, module in MODELS.children[library].module_dict.items():
            if module.__module__.startswith(f"{library}.models.backbones."):
                names.add(f"{library}.{name}")
    return names


def build(name: str, variant: str) -> nn.Module:
    """Builds one of ``CONVOLUTIONAL``."""
    library, _, short = name.partition(".")
    with contextlib.ExitStack() as stack:
        if name in NARROW:
            table = MODELS.children[library].get(short).arch_settings
            stack.enter_context(mock.patch.dict(table, NARROW[name]))
        stack.enter_context(DefaultScope.overwrite_default_scope(library))
        return MODELS.build(dict(type=name, **copy.deepcopy(CONVOLUTIONAL[name][variant])))
