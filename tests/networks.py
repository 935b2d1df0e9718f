"""Networks the tests run over, and plain networks of any width built without the code under test."""

from __future__ import annotations

import ast
import copy
import functools

import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmnetaug.elastic import Elastic, base_state_dict, fill_new_channels

WIDTH, EXPAND = [1, 1.5, 2.3], [1, 1.4, 1.9]
IMAGE = 64

BACKBONES = {
    "mobilenet_v2": (
        dict(type="mmnetaug.MobileNetV2", widen_factor=0.35, out_indices=(2, 4, 5)),
        [16, 32, 56],
    ),
    "mobilenet_v3": (
        dict(type="mmnetaug.TinyNet", arch="mobilenet_v3_large", widen_factor=0.35, out_indices=(2, 4, 5)),
        [16, 40, 56],
    ),
    "resnet18": (
        dict(type="mmdet.ResNet", depth=18, base_channels=8, stem_channels=8, out_indices=(1, 2, 3)),
        [16, 32, 64],
    ),
    "resnet50": (
        dict(type="mmdet.ResNet", depth=50, base_channels=4, stem_channels=8, out_indices=(1, 2, 3)),
        [32, 64, 128],
    ),
    "cspdarknet": (dict(type="mmdet.CSPDarknet", deepen_factor=0.33, widen_factor=0.125), [32, 64, 128]),
}


def detector_config(backbone: str) -> dict:
    """YOLOv3 with depthwise-separable neck and head on one of ``BACKBONES``: it concatenates twice."""
    config, channels = BACKBONES[backbone]
    return dict(
        type="mmdet.YOLOV3",
        data_preprocessor=dict(type="mmdet.DetDataPreprocessor", mean=[0, 0, 0], std=[255, 255, 255]),
        backbone=copy.deepcopy(config),
        neck=dict(
            type="mmnetaug.DepthwiseYOLOV3Neck",
            num_scales=3,
            in_channels=channels[::-1],
            out_channels=[24, 16, 8],
        ),
        bbox_head=dict(
            type="mmnetaug.DepthwiseYOLOV3Head",
            num_classes=3,
            in_channels=[24, 16, 8],
            out_channels=[32, 24, 16],
            anchor_generator=dict(
                type="mmdet.YOLOAnchorGenerator",
                base_sizes=[[(60, 50), (40, 60)], [(30, 30), (20, 30)], [(10, 10), (14, 8)]],
                strides=[32, 16, 8],
            ),
            bbox_coder=dict(type="mmdet.YOLOBBoxCoder"),
            featmap_strides=[32, 16, 8],
            loss_cls=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="sum"),
            loss_conf=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="sum"),
            loss_xy=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="sum"),
            loss_wh=dict(type="mmdet.MSELoss", reduction="sum"),
        ),
        train_cfg=dict(assigner=dict(type="mmdet.GridAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0)),
        test_cfg=dict(
            nms_pre=100, conf_thr=0.0005, score_thr=0.001, nms=dict(type="nms", iou_threshold=0.45), max_per_img=20
        ),
    )


def build_pair(config: dict, dtype: torch.dtype = torch.float32, **netaug) -> tuple[nn.Module, nn.Module]:
    """An elastic model and the plain model holding its base state dict, both the caller's own."""
    netaug = {"width": WIDTH, "expand": EXPAND, **netaug}
    elastic, plain = copy.deepcopy(_built(repr(config), repr(netaug)))
    return elastic.to(dtype).train(), plain.to(dtype).train()


@functools.cache
def _built(config: str, netaug: str) -> tuple[nn.Module, nn.Module]:
    """Tracing takes seconds: once per configuration."""
    config, netaug = ConfigDict(ast.literal_eval(config)), ast.literal_eval(netaug)
    with DefaultScope.overwrite_default_scope("mmdet"):
        torch.manual_seed(0)
        elastic = MODELS.build(dict(type="mmnetaug.NetAug", model=copy.deepcopy(config), **netaug))
        elastic.init_weights()
        fill_new_channels(elastic, preserving=False)  # weights of zero would hide mistakes
        _randomise_norms(elastic)
        plain = MODELS.build(copy.deepcopy(config))
    plain.load_state_dict(base_state_dict(elastic), strict=True)
    return elastic, plain


def _randomise_norms(elastic: nn.Module) -> None:
    """Zero-initialised norms would silence whole branches, and fresh statistics hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in elastic.modules():
            if isinstance(module, nn.BatchNorm2d):
                for name in ("weight", "bias", "running_mean", "running_var"):
                    stored = module.stored(name) if isinstance(module, Elastic) else getattr(module, name)
                    low, high = (0.5, 1.5) if name in ("weight", "running_var") else (-0.2, 0.2)
                    stored.uniform_(low, high, generator=generator)


def randomise(elastic: nn.Module) -> None:
    """Replaces constants: zero-initialised layers would silence branches, fresh statistics would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    stored = {name: tensor for name, tensor in elastic.named_parameters()}
    stored |= {name: tensor for name, tensor in elastic.named_buffers() if "running_" in name}
    with torch.no_grad():
        for name, tensor in stored.items():
            if tensor.is_floating_point() and (tensor == tensor.flatten()[0]).all():
                low, high = (-0.2, 0.2) if name.endswith(("bias", "mean")) else (0.5, 1.5)
                tensor.uniform_(low, high, generator=generator)


def batch(images: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict:
    """Random images with two boxes each, as the data preprocessor hands them to a detector's forward.

    Boxes stay float32 whatever the images' type: mmdet's targets are float32.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(images, 3, IMAGE, IMAGE, generator=generator).to(dtype)
    samples = []
    for _ in range(images):
        corner = torch.rand(2, 2, generator=generator) * 30
        size = torch.rand(2, 2, generator=generator) * 25 + 6
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(IMAGE, IMAGE),
                ori_shape=(IMAGE, IMAGE),
                batch_input_shape=(IMAGE, IMAGE),
                scale_factor=(1, 1),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + size], 1),
            labels=torch.randint(0, 3, (2,), generator=generator),
        )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def loss_of(model: nn.Module, data: dict) -> Tensor:
    """The model's training loss."""
    return model.parse_losses(model(**copy.deepcopy(data), mode="loss"))[0]


class Slices:
    """Where the parameters of one sampled network lie in the stored ones, computed index by index.

    Storage has the tiny network's channels of all runs first, then the additional channels run by run; the forward pass
    wants run by run, the tiny network's channels before the additional ones.
    """

    def __init__(self, layer: nn.Module, name: str, widths: dict) -> None:
        shape = layer.stored(name).shape
        self.indices = [list(range(size)) for size in shape]
        for axis in layer.elastic_axes[name]:
            picked, base_offset, extra_offset = [], 0, sum(run.base_width for run in axis.runs)
            for run in axis.runs:
                picked += [base_offset + channel for channel in range(run.base_width)]
                picked += [extra_offset + channel for channel in range(widths[run] - run.base_width)]
                base_offset += run.base_width
                extra_offset += run.max_width - run.base_width
            self.indices[axis.dim] = picked

    def mesh(self) -> tuple[Tensor, ...]:
        """One index per dimension, which broadcast against each other."""
        count = len(self.indices)
        return tuple(
            torch.tensor(index).view([-1 if dim == own else 1 for dim in range(count)])
            for own, index in enumerate(self.indices)
        )


def plain_at(elastic: nn.Module, plain: nn.Module, widths: list[int]) -> nn.Module:
    """An independent plain network (stock layers only) of the given widths, weights copied from the elastic one."""
    space = elastic.elastic
    chosen = dict(zip(space.groups, widths, strict=True))
    network = copy.deepcopy(plain)
    network.load_state_dict(base_state_dict(elastic), strict=True)  # what is not elastic
    for name, layer in elastic.named_modules():
        if not isinstance(layer, Elastic):
            continue
        target = network.get_submodule(name)
        assert not isinstance(target, Elastic)
        everywhere = {run: run.width for axes in layer.elastic_axes.values() for axis in axes for run in axis.runs}
        for tensor in layer.elastic_axes:
            value = layer.stored(tensor).detach()[Slices(layer, tensor, everywhere | chosen).mesh()].clone()
            if tensor in target._parameters:
                target._parameters[tensor] = nn.Parameter(value)
            else:
                target._buffers[tensor] = value
        with space.at(widths):
            for count in layer.elastic_counts:  # groups of a convolution, the shape that a layer norm works on
                setattr(target, count, getattr(layer, count))
    return network


def scatter_gradients(elastic: nn.Module, network: nn.Module, widths: list[int]) -> dict[str, Tensor]:
    """Gradients of a network of ``plain_at``, at the places of the stored parameters they belong to."""
    chosen = dict(zip(elastic.elastic.groups, widths, strict=True))
    gradients = {}
    for name, parameter in elastic.named_parameters():
        path, _, tensor = name.rpartition(".")
        layer, source = elastic.get_submodule(path), network.get_parameter(name)
        full = torch.zeros_like(parameter)
        if source.grad is not None:
            if isinstance(layer, Elastic) and tensor in layer.elastic_axes:
                everywhere = {run: run.width for axis in layer.elastic_axes[tensor] for run in axis.runs}
                full[Slices(layer, tensor, everywhere | chosen).mesh()] = source.grad
            else:
                full.copy_(source.grad)
        gradients[name] = full
    return gradients
