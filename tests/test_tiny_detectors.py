"""RTMDet and YOLOX-nano in tiny sizes: cost by hand, one step, exports that compute what PyTorch does."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_fixtures import make_voc_folder
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.structures import InstanceData
from networks import BACKBONES
from test_tools import CLASSES, REPO, load_tool, run
from torch import nn

from mmnetaug.analysis.cost import count_cost
from mmnetaug.apis.build import build_model
from mmnetaug.deploy.onnx import OnnxNetwork, Raw, export_onnx, quantize_onnx
from mmnetaug.deploy.tflite import TFLiteNetwork, arena_size, convert_tflite

NETWORKS = ("rtmdet_mbv2_w035", "rtmdet_mbv3_w035", "rtmdet_mcunet", "yolox_nano_relu6")
COSTS = list(zip(NETWORKS, (192, 160, 224, 224), (47, 26, 150, 146), strict=True))
SIZE = 96
TFLITE = os.environ.get("TFLITE_PYTHON")  # interpreter of LiteRT's environment, see docs/deploy.md


@functools.cache
def _built(name: str, netaug: bool) -> nn.Module:
    cfg = Config.fromfile(REPO / f"configs/{name}{'_netaug' if netaug else ''}_custom.py")
    (cfg.model.model if netaug else cfg.model).bbox_head.num_classes = 3
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    return model


def build(name: str, netaug: bool = False) -> nn.Module:
    return copy.deepcopy(_built(name, netaug)).train()


def batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for label in range(2):
        size = dict(img_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE), batch_input_shape=(SIZE, SIZE))
        sample = DetDataSample(metainfo=dict(**size, ori_shape=(SIZE, SIZE), scale_factor=(1, 1)))
        boxes = torch.tensor([[8.0, 10.0, 40.0, 52.0], [30.0, 20.0, 90.0, 88.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([label, 2]))
        samples.append(sample)
    return dict(inputs=torch.randn(2, 3, SIZE, SIZE, generator=generator), data_samples=samples)


def loss_of(model: nn.Module) -> torch.Tensor:
    return model.parse_losses(model(**batch(), mode="loss"))[0]


# --- cost -------------------------------------------------------------------------------------------------------------


def separable(inputs: int, outputs: int, kernel: int, side: int) -> int:
    return (inputs * kernel**2 + inputs * outputs) * side**2


def test_macs_by_hand():
    """MobileNetV3 w0.35 under RTMDet's neck and head, one class, at 160x160."""
    macs = 3 * 8 * 9 * 80**2  # the stem
    macs += separable(8, 8, 3, 80)
    channels, side = 8, 80
    for outputs, hidden, kernel, stride, squeeze in (  # Howard et al., 2019, table 1, times 0.35
        (8, [24, 24], 3, 2, []),
        (16, [24, 40, 40], 5, 2, [16, 16, 16]),
        (32, [88, 72, 64, 64], 3, 2, []),
        (40, [168, 232], 3, 1, [40, 56]),
        (56, [232, 336, 336], 5, 2, [56, 88, 88]),
    ):
        for index, width in enumerate(hidden):
            macs += channels * width * side**2
            side //= 1 if index else stride
            macs += separable(width, outputs, kernel, side)
            macs += 2 * width * squeeze[index] if squeeze else 0
            channels = outputs

    def block(inputs: int, outputs: int, side: int) -> int:  # of the neck, at half the channels inside
        middle = outputs // 2
        mixing = 2 * inputs * middle + 2 * middle * outputs
        return mixing * side**2 + separable(middle, middle, 3, side) + separable(middle, middle, 5, side)

    macs += 56 * 40 * 5**2 + block(80, 40, 10) + 40 * 16 * 10**2 + block(32, 16, 20)  # from coarse to fine
    macs += separable(16, 16, 3, 10) + block(32, 40, 10) + separable(40, 40, 3, 5) + block(80, 56, 5)  # and back
    for width, side in ((16, 20), (40, 10), (56, 5)):
        macs += separable(width, 48, 3, side)
        macs += 2 * 2 * separable(48, 48, 3, side) + 48 * (1 + 4) * side**2  # two branches of two layers
    cfg = Config.fromfile(REPO / "configs/rtmdet_mbv3_w035_custom.py")
    assert count_cost(build_model(cfg), (1, 3, 160, 160)).macs == macs == 25_853_008


@pytest.mark.parametrize(("name", "size", "macs"), COSTS)
def test_configs_are_of_the_size_and_cost_that_they_state(name, size, macs):
    path = REPO / f"configs/{name}_custom.py"
    cfg = Config.fromfile(path)
    assert f"{size}x{size}, {macs} M MACs" in path.read_text()
    scales = [
        step.scale
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
        for step in loader.dataset.pipeline
        if step.type.endswith("Resize")
    ]
    assert scales == [(size, size)] * 4
    assert count_cost(build_model(cfg), (1, 3, size, size)).macs / 1e6 == pytest.approx(macs, abs=0.5)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_activations_that_microcontrollers_have(name):
    kinds = {type(module).__name__ for module in build(name).modules() if "activation" in type(module).__module__}
    assert kinds <= {"ReLU", "ReLU6", "Hardsigmoid", "Hardswish"}


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns(name):
    model = build(name)
    loss = loss_of(model)
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_boxes_start_two_strides_wide():
    """Without a size, no box overlaps its object, and the overlap weighs the box loss."""
    model = build("rtmdet_mbv3_w035")
    strides = [stride[0] for stride in model.bbox_head.prior_generator.strides]
    _, distances = model.bbox_head(model.extract_feat(batch()["inputs"]))
    for distance, stride in zip(distances, strides, strict=True):
        assert (distance.mean(dim=(0, 2, 3)) / stride).tolist() == pytest.approx([1] * 4, abs=0.1)


@pytest.mark.parametrize("name", ["rtmdet_mbv3_w035", "yolox_nano_relu6"])
def test_netaug_widens_all_groups_and_starts_as_the_plain_network(name):
    elastic, plain = build(name, netaug=True), build(name)
    assert all(group.held_reason is None for group in elastic.elastic.groups)
    assert elastic.elastic.largest() != elastic.elastic.base()
    with torch.no_grad():
        expected = loss_of(plain)
        for widths in (elastic.elastic.base(), elastic.elastic.largest()):
            with elastic.elastic.at(widths):
                assert loss_of(elastic).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("distill", [None, dict(weight=0.5)])
def test_a_netaug_step(distill):
    elastic = build("rtmdet_mbv3_w035", netaug=True)
    optimizer = torch.optim.SGD(elastic.parameters(), lr=1e-2)
    wrapper = OPTIM_WRAPPERS.build(dict(type="mmnetaug.NetAugOptimWrapper", optimizer=optimizer, distill=distill))
    idle = []
    optimizer.register_step_pre_hook(
        lambda *args: idle.extend(name for name, p in elastic.named_parameters() if p.grad is None or not p.grad.any())
    )
    with wrapper.optim_context(elastic):
        loss = loss_of(elastic)
    wrapper.update_params(loss)
    assert loss.isfinite()
    assert all("_reg." in name or "reg_convs." in name for name in idle), idle  # levels without an object


# --- deployment -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal((1, 3, SIZE, SIZE), np.float32) for _ in range(4)]


def settled(model: nn.Module, images: list[np.ndarray]) -> nn.Module:
    """The network in evaluation, with activations of a trained one's size."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # mmdet draws the head's with a deviation of 0.01: nothing to compare
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of one batch
    with torch.no_grad():
        Raw(model)(torch.from_numpy(np.concatenate(images)))
    return model.eval()


def test_onnx_computes_what_pytorch_does(images, tmp_path):
    """RTMDet's neck and head, behind a ResNet, which is exported in half the time of the mobile networks."""
    cfg = Config.fromfile(REPO / "configs/rtmdet_mbv3_w035_custom.py")
    cfg.model.backbone, cfg.model.neck.in_channels = copy.deepcopy(BACKBONES["resnet18"])
    torch.manual_seed(0)
    model = settled(build_model(cfg), images)
    export_onnx(model, (1, 3, SIZE, SIZE), tmp_path / "float.onnx")
    quantize_onnx(tmp_path / "float.onnx", images, tmp_path / "int8.onnx")
    batch = np.concatenate(images[:2])
    with torch.no_grad():
        expected = [output.numpy() for output in Raw(model)(torch.from_numpy(batch))]
    compare(expected, OnnxNetwork(tmp_path / "float.onnx")(batch), 2e-3)
    # what int8 loses on drawn weights says nothing; that it can be made and run does
    given = OnnxNetwork(tmp_path / "int8.onnx")(batch)
    assert [output.shape for output in given] == [output.shape for output in expected]
    assert all(np.isfinite(output).all() for output in given)


@pytest.mark.skipif(TFLITE is None, reason="TFLITE_PYTHON names no interpreter with LiteRT")
@pytest.mark.parametrize("name", NETWORKS)
def test_tflite_computes_what_pytorch_does(name, images, tmp_path):
    model = settled(build(name), images)
    paths = tmp_path / "float.tflite", tmp_path / "int8.tflite"
    convert_tflite(TFLITE, model, (1, 3, SIZE, SIZE), images, *paths)
    with torch.no_grad():
        expected = [output.numpy() for output in Raw(model)(torch.from_numpy(images[0]))]
    with TFLiteNetwork(TFLITE, paths[0]) as network:
        compare(expected, network(images[0]), tolerance(name))
    # what int8 loses on drawn weights says as little here; TensorFlow Lite Micro loses it, too
    arena = arena_size(TFLITE, paths[1])
    assert arena is None or (arena["total"] > 0 and arena["largest_difference"] == 0)


def tolerance(name: str) -> float:
    """Drawn YOLOX-nano amplifies rounding: its outputs in PyTorch's float32 deviate by 0.4 % from those in float64."""
    return 2e-2 if name.startswith("yolox") else 2e-3


def compare(expected: list[np.ndarray], given: list[np.ndarray], tolerance: float) -> None:
    """The deviation of all outputs, relative to how they vary."""
    assert [output.shape for output in expected] == [output.shape for output in given]
    for one, two in zip(expected, given, strict=True):
        assert np.sqrt(((one - two) ** 2).mean()) <= tolerance * one.std()


def test_from_photos_to_detections(tmp_path):
    train, predict, describe = (load_tool(name) for name in ("train", "predict", "describe"))
    make_voc_folder(tmp_path / "data", dict(train=4, val=2), CLASSES)
    data, config = ["--data-root", tmp_path / "data"], REPO / "configs/rtmdet_mbv3_w035_custom.py"
    options = ["--cfg-options", "train_cfg.max_epochs=1"]
    options += [f"{split}_dataloader.{key}" for split in ("train", "val") for key in ("num_workers=0",)]
    options += [f"{split}_dataloader.persistent_workers=False" for split in ("train", "val")]
    options += ["train_dataloader.batch_size=2"]
    assert run(train, config, *data, "--size", 64, "--work-dir", tmp_path / "work", *options) == 0
    assert run(describe, config, *data, "--json", tmp_path / "figures.json") == 0
    assert json.loads(Path(tmp_path / "figures.json").read_text())["input_shape"] == [1, 3, 160, 160]
    photo = next((tmp_path / "data/JPEGImages").iterdir()).rename(tmp_path / "photo.jpg")
    shutil.rmtree(tmp_path / "data")  # the checkpoint knows the classes
    args = [config, tmp_path / "work/epoch_1_tiny.pth", photo, "--size", 64, "--score-thr", 0]
    assert run(predict, *args, "--out-dir", tmp_path / "out") == 0
    [picture] = (tmp_path / "out").glob("*.png")
    assert cv2.imread(str(picture)).shape == cv2.imread(str(photo)).shape
    assert json.loads((tmp_path / "out/predictions.json").read_text())["categories"][0]["name"] == CLASSES[0]
