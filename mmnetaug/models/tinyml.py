"""TinyML backbones: an architecture is a table of stages, and one builder turns any table into a network.

All of them are chains of inverted bottlenecks (1x1 expansion, k x k depthwise convolution, optional
squeeze-and-excitation, 1x1 projection). MobileNetV2 itself is the stock class of mmpretrain without unused layers.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmpretrain.models.backbones import MobileNetV2 as StockMobileNetV2
from mmpretrain.models.utils import SELayer, make_divisible
from torch import Tensor, nn

from mmnetaug.registry import MODELS

BN = dict(type="BN", eps=1e-5, momentum=0.1)  # torch's defaults, as in all papers below


class Stage(NamedTuple):
    """A stage of inverted bottlenecks: one row of an architecture's table, at width multiplier 1.

    Attributes:
        channels: Output channels of every block.
        kernels: Kernel size of the depthwise convolution, per block.
        stride: Of the first block; the others have stride 1.
        expand: Per block, hidden channels over input channels (after the multiplier). 1 means no expansion layer.
        hidden: Per block, hidden channels in place of ``expand``; they scale with the width multiplier.
        act: Type of the activation.
        se: Whether the blocks have squeeze-and-excitation.
    """

    channels: int
    kernels: Sequence[int]
    stride: int
    expand: Sequence[float] = ()
    hidden: Sequence[int] = ()
    act: str = "ReLU6"
    se: bool = False


class Architecture(NamedTuple):
    """One network at width multiplier 1.

    Attributes:
        stem: Channels of the 3x3 stride-2 stem.
        stages: Its stages.
        last: Channels of the 1x1 convolution before pooling when the features are computed after pooling
            (MobileNetV3), 0 for networks without such a layer.
        features: Channels that the classifier reads, never fewer than this at any width; 0 for the last stage's.
        act: Activation of the stem and of the layers after the stages.
    """

    stem: int
    stages: Sequence[Stage]
    last: int
    features: int
    act: str = "ReLU6"


ARCHITECTURES = {
    # Howard et al., "Searching for MobileNetV3", 2019, table 1.
    "mobilenet_v3_large": Architecture(
        stem=16,
        stages=(
            Stage(16, [3], 1, expand=[1], act="ReLU"),
            Stage(24, [3, 3], 2, hidden=[64, 72], act="ReLU"),
            Stage(40, [5, 5, 5], 2, hidden=[72, 120, 120], act="ReLU", se=True),
            Stage(80, [3, 3, 3, 3], 2, hidden=[240, 200, 184, 184], act="HSwish"),
            Stage(112, [3, 3], 1, hidden=[480, 672], act="HSwish", se=True),
            Stage(160, [5, 5, 5], 2, hidden=[672, 960, 960], act="HSwish", se=True),
        ),
        last=960,
        features=1280,
        act="HSwish",
    ),
    # MobileNetV2 w0.35 with a narrower end; Lin et al., "MCUNet", 2020, and Cai et al., "NetAug", 2022.
    "mobilenet_v2_tiny": Architecture(
        stem=16,
        stages=(
            Stage(8, [3], 1, expand=[1]),
            Stage(8, [3] * 2, 2, expand=[6] * 2),
            Stage(16, [3] * 3, 2, expand=[6] * 3),
            Stage(24, [3] * 4, 2, expand=[6] * 4),
            Stage(32, [3] * 3, 1, expand=[6] * 3),
            Stage(56, [3] * 3, 2, expand=[6] * 3),
            Stage(112, [3], 1, expand=[6]),
        ),
        last=0,
        features=448,
    ),
    # Cai et al., "ProxylessNAS", 2019, the network found for mobile phones.
    "proxyless_mobile": Architecture(
        stem=32,
        stages=(
            Stage(16, [3], 1, expand=[1]),
            Stage(32, [5, 3], 2, expand=[3, 3]),
            Stage(40, [7, 3, 5, 5], 2, expand=[3, 3, 3, 3]),
            Stage(80, [7, 5, 5, 5], 2, expand=[6, 3, 3, 3]),
            Stage(96, [5, 5, 5, 5], 1, expand=[6, 3, 3, 3]),
            Stage(192, [7, 7, 7, 7], 2, expand=[6, 6, 3, 3]),
            Stage(320, [7], 1, expand=[6]),
        ),
        last=0,
        features=1280,
    ),
    # Lin et al., "MCUNet", 2020, the network of 81.8 M MACs at input 176.
    "mcunet": Architecture(
        stem=16,
        stages=(
            Stage(8, [3], 1, expand=[1]),
            Stage(16, [7, 3, 7, 5], 2, expand=[3, 5, 5, 4]),
            Stage(24, [5, 5, 5], 2, expand=[5, 5, 5]),
            Stage(40, [3, 7, 5], 2, expand=[5, 6, 4]),
            Stage(48, [5, 7, 3], 1, expand=[5, 5, 5]),
            Stage(96, [3, 7, 3], 2, expand=[6, 5, 4]),
            Stage(160, [7], 1, expand=[5]),
        ),
        last=0,
        features=0,
    ),
}


def round8(channels: float) -> int:
    """Rounds to the nearest multiple of 8, at least 8 and never down by more than 10%."""
    return make_divisible(channels, 8)


class InvertedBottleneck(BaseModule):
    """1x1 expansion, depthwise convolution, optional squeeze-and-excitation, 1x1 projection without activation.

    Args:
        in_channels: Channels of the input.
        hidden: Channels of the depthwise convolution.
        out_channels: Channels of the output.
        kernel: Kernel size of the depthwise convolution.
        stride: Of the depthwise convolution.
        act: Type of the activation.
        se: Whether squeeze-and-excitation gates the depthwise convolution's output.
        expand: Whether there is an expansion; without one, ``hidden`` must equal ``in_channels``.
        shortcut: Whether the input is added to the output.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        kernel: int,
        stride: int,
        act: str,
        se: bool,
        expand: bool,
        shortcut: bool,
    ) -> None:
        super().__init__()
        act_cfg = dict(type=act)
        self.shortcut = shortcut
        self.expand_conv = ConvModule(in_channels, hidden, 1, norm_cfg=BN, act_cfg=act_cfg) if expand else None
        self.depthwise_conv = ConvModule(
            hidden, hidden, kernel, stride, padding=kernel // 2, groups=hidden, norm_cfg=BN, act_cfg=act_cfg
        )
        self.se = None
        if se:
            gate = (dict(type="ReLU"), dict(type=nn.Hardsigmoid))  # mmcv's HSigmoid warns when it is built
            self.se = SELayer(hidden, squeeze_channels=max(round8(hidden / 4), 16), act_cfg=gate)
        self.project_conv = ConvModule(hidden, out_channels, 1, norm_cfg=BN, act_cfg=None)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = x if self.expand_conv is None else self.expand_conv(x)
        out = self.depthwise_conv(out)
        if self.se is not None:
            out = self.se(out)
        out = self.project_conv(out)
        return x + out if self.shortcut else out


@MODELS.register_module()
class DropBlock(nn.Module):
    """Zeroes square blocks of an image's features, the same in all channels, and scales up the rest.

    It computes the same as https://github.com/miguelvr/dropblock, which the paper cites (appendix A). mmdet's
    ``DropBlock`` draws blocks for every channel separately, and few in its first 2000 iterations: on small feature
    maps, that is dropout of single channels.

    Args:
        drop_prob: Probability that a position is dropped, if blocks neither overlap nor cross the border.
        block_size: Height and width of a block, odd.
    """

    def __init__(self, drop_prob: float, block_size: int) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1 or block_size % 2 == 0:
            raise ValueError(f"drop_prob is in [0, 1) and block_size odd, got {drop_prob} and {block_size}")
        self.drop_prob, self.block_size = drop_prob, block_size

    def forward(self, x: Tensor) -> Tensor:
        """Drops blocks of ``x`` (N, C, H, W) in training mode."""
        if not self.training:
            return x
        centres = (torch.rand(len(x), 1, *x.shape[2:], device=x.device) < self.drop_prob / self.block_size**2).float()
        kept = 1 - F.max_pool2d(centres, self.block_size, stride=1, padding=self.block_size // 2)
        return x * (kept * kept.numel() / kept.sum().clamp(min=1)).to(x.dtype)


@MODELS.register_module()
class TinyNet(BaseModule):
    """A TinyML backbone for mmpretrain's classifiers and mmdet's detectors.

    Layers after the last output stage are not built, so that every parameter of a detector gets a gradient. Weights
    start as He normal with fan-out, the default of ``ConvModule``.

    Args:
        arch: One of ``ARCHITECTURES``.
        widen_factor: Width multiplier; widths are rounded by :func:`round8`.
        out_indices: Stages to return, where 0 is the depthwise-separable block after the stem. The index after the
            last stage returns the features for a classifier, whose number does not shrink with the width: (N, C, H, W)
            to be followed by mmpretrain's ``GlobalAveragePooling``, or (N, C, 1, 1) for MobileNetV3, which pools first.
        drop_block: Config of DropBlock (``mmnetaug.DropBlock``) to be added after every stage of stride 16 and 32.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights.

    Raises:
        ValueError: There is no such architecture or stage.
    """

    def __init__(
        self,
        arch: str,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (-1,),
        drop_block: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if arch not in ARCHITECTURES:
            raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, not {arch!r}")
        table = ARCHITECTURES[arch]
        outputs = len(table.stages) + bool(table.features)
        if not out_indices or any(index not in range(-outputs, outputs) for index in out_indices):
            raise ValueError(f"out_indices of {arch} must be from 0 to {outputs - 1}, not {tuple(out_indices)}")
        self.out_indices = tuple(sorted(index % outputs for index in out_indices))

        channels = round8(table.stem * widen_factor)
        act = dict(type=table.act)
        self.stem = ConvModule(3, channels, 3, stride=2, padding=1, norm_cfg=BN, act_cfg=act)
        self.stages = nn.ModuleList()
        for stage in table.stages[: self.out_indices[-1] + 1]:
            self.stages.append(_build_stage(stage, channels, widen_factor, with_stem=not self.stages))
            channels = round8(stage.channels * widen_factor)
        strides = itertools.accumulate((stage.stride for stage in table.stages), operator.mul, initial=2)
        drops = [drop_block is not None and stride >= 16 for stride in list(strides)[1:]]
        self.drop_blocks = nn.ModuleDict({str(i): MODELS.build(drop_block) for i, drop in enumerate(drops) if drop})
        if self.out_indices[-1] == len(table.stages):
            self.stages.append(_build_features(table, channels, widen_factor))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps images (N, 3, H, W) to one feature map per output index, in order."""
        x = self.stem(x)
        outs = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if str(index) in self.drop_blocks:
                x = self.drop_blocks[str(index)](x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)


def _build_stage(stage: Stage, in_channels: int, widen_factor: float, with_stem: bool) -> nn.Sequential:
    """The blocks of one stage; the first one may have a shortcut only in the first stage."""
    out_channels = round8(stage.channels * widen_factor)
    blocks = []
    for index, kernel in enumerate(stage.kernels):
        stride = 1 if index else stage.stride
        expand = bool(stage.hidden) or stage.expand[index] != 1
        if stage.hidden:
            hidden = round8(stage.hidden[index] * widen_factor)
        else:
            hidden = round8(in_channels * stage.expand[index]) if expand else in_channels
        shortcut = stride == 1 and in_channels == out_channels and (index > 0 or with_stem)
        blocks.append(
            InvertedBottleneck(in_channels, hidden, out_channels, kernel, stride, stage.act, stage.se, expand, shortcut)
        )
        in_channels = out_channels
    return nn.Sequential(*blocks)


def _build_features(table: Architecture, channels: int, widen_factor: float) -> nn.Sequential:
    """The layers between the last stage and the classifier."""
    act = dict(type=table.act)
    features = max(round8(table.features * widen_factor), table.features)
    if not table.last:
        return nn.Sequential(ConvModule(channels, features, 1, norm_cfg=BN, act_cfg=act))
    last = round8(table.last * widen_factor)
    return nn.Sequential(
        ConvModule(channels, last, 1, norm_cfg=BN, act_cfg=act),
        nn.AdaptiveAvgPool2d(1),
        ConvModule(last, features, 1, act_cfg=act),
    )


@MODELS.register_module()
class MobileNetV2(StockMobileNetV2):
    """mmpretrain's MobileNetV2 up to the last output layer, with the same parameter names.

    The stock class always builds its last block and 1x1 convolution. In a detector that uses earlier layers they get
    no gradient (with which DistributedDataParallel fails) and count as parameters of the network.

    Args:
        **kwargs: See ``mmpretrain.MobileNetV2``. For C3, C4 and C5, ``out_indices=(2, 4, 5)``: the last layer of each
            stride before the final widening (16, 32 and 56 channels at width 0.35).
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        used = max(self.out_indices) + 1
        for name in self.layers[used:]:
            delattr(self, name)
        del self.layers[used:]
