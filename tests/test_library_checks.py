"""What MMDetection and MMPretrain test of every model of theirs, of our models and of stock models inside NetAug.

Backbones return the features that are asked for. Each model computes losses, predictions and raw outputs of images of
unequal shapes, with boxes and without any, and its losses give a gradient to every parameter that learns.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import is_list_of
from mmpretrain.structures import DataSample
from stock import config_path, made_quick, without_downloads
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmnetaug.models import ARCHITECTURES

REPO = Path(__file__).parents[1]
OURS = ["yolov3_mbv2_w035_voc.py", "yolov3_mbv3_w035_voc.py", "yolov3_mbv3_w035_netaug_voc.py"]
CLASSIFIERS = [
    "classification/imagenet/mobilenet_v2_tiny_in1k.py",
    "classification/cifar10/mobilenet_v2_tiny_netaug_cifar10.py",
]
BOXES = [[2, 3], [0, 3], [0, 0]]
"""Numbers of objects in the two images of a batch."""


@functools.cache
def build(name: str) -> nn.Module:
    """The model of a config of ours, or NetAug around a stock one, in evaluation mode."""
    cfg = Config.fromfile(config_path(name) if "::" in name else REPO / "configs" / name)
    model = cfg.model
    if "::" in name:
        without_downloads(model)
        if cfg.default_scope == "mmdet":
            made_quick(model)
        model = dict(type="mmnetaug.NetAug", model=model, expand=[1, 1.4], width=[1, 1.4])
    if "data_preprocessor" in cfg:
        model = dict(model, data_preprocessor=cfg.data_preprocessor)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        built = MODELS.build(model)
        built.init_weights()
    built.eval()
    return built


def check_gradients(model: nn.Module, loss: Tensor) -> None:
    """Every parameter that learns gets a finite gradient, and some of them one that is not zero."""
    model.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert any(gradient.any() for gradient in gradients.values())
    model.zero_grad()


BACKBONES = [dict(type="mmnetaug.TinyNet", arch=arch, widen_factor=0.35) for arch in ARCHITECTURES]
BACKBONES.append(dict(type="mmnetaug.MobileNetV2", widen_factor=0.35))


@pytest.mark.parametrize("config", BACKBONES, ids=lambda config: config.get("arch", config["type"]))
@pytest.mark.parametrize("out_indices", [(1, 3), (2, 4, 5)], ids=str)
def test_backbones_return_the_features_that_are_asked_for(config, out_indices):
    torch.manual_seed(0)
    everything = MODELS.build(dict(config, out_indices=range(6)))
    everything.init_weights()
    backbone = MODELS.build(dict(config, out_indices=out_indices))
    weights = everything.state_dict()
    backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
    images = torch.randn(2, 3, 96, 64)
    for training in (False, True):
        everything.train(training)
        backbone.train(training)
        assert all(norm.training == training for norm in backbone.modules() if isinstance(norm, _BatchNorm))
        features = everything(images)
        assert [96 // f.shape[2] for f in features] == sorted(96 // f.shape[2] for f in features)
        assert all(f.shape[0] == 2 and f.shape[2] * 64 == f.shape[3] * 96 for f in features)
        torch.testing.assert_close(backbone(images), tuple(features[i] for i in out_indices), rtol=0, atol=0)
    check_gradients(backbone, sum(feature.sum() for feature in backbone(images)))


@pytest.mark.slow
@pytest.mark.parametrize("boxes", BOXES, ids=str)
@pytest.mark.parametrize("name", OURS, ids=lambda name: Path(name).stem)
def test_detectors_compute_losses_predictions_and_raw_outputs(name, boxes):
    losses = check_detector(build(name), boxes)
    # without an object there is nothing to classify or to place, but confidence to be lost
    for key in ("loss_cls", "loss_xy", "loss_wh"):
        assert (sum(losses[key]) > 0) == any(boxes), key
    assert sum(losses["loss_conf"]) > 0


def check_detector(model: nn.Module, boxes: list[int]) -> dict:
    """Losses, predictions and raw outputs of two images with these numbers of objects; returns the losses."""
    packed = demo_mm_inputs(2, [[3, 128, 128], [3, 125, 130]], num_items=boxes)
    batch = model.data_preprocessor(packed, training=False)
    losses = model(**batch, mode="loss")
    values = [value for level in losses.values() for value in (level if isinstance(level, list) else [level])]
    assert all(isinstance(value, Tensor) and value.isfinite().all() for value in values)
    total = sum(value.sum() for value in values)
    assert total > 0 if any(boxes) else total >= 0  # SSD counts no more than three negatives for each positive
    if any(boxes):
        check_gradients(model, total)
    with torch.no_grad():
        predicted = model(**batch, mode="predict")
        assert is_list_of(predicted, DetDataSample) and len(predicted) == 2
        for sample in predicted:
            found = sample.pred_instances
            assert found.bboxes.shape == (len(found.scores), 4) and len(found.labels) == len(found.scores)
            assert found.bboxes.isfinite().all()
        assert isinstance(model(batch["inputs"], batch["data_samples"], mode="tensor"), tuple)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS, ids=lambda name: Path(name).stem)
def test_classifiers_compute_losses_predictions_and_raw_outputs(name):
    check_classifier(build(name))


def check_classifier(model: nn.Module) -> None:
    """Losses, predictions, features and logits of two images."""
    images, samples = torch.randn(2, 3, 64, 64), [DataSample().set_gt_label(label) for label in (1, 3)]
    check_gradients(model, sum(model(images, samples, mode="loss").values()))
    with torch.no_grad():
        logits = model(images)
        classes = logits.shape[1]
        losses = model(images, samples, mode="loss")
        assert losses and all(value.dim() == 0 and value > 0 for value in losses.values())
        predicted = model(images, samples, mode="predict")
        assert is_list_of(predicted, DataSample)
        for sample, scores in zip(predicted, logits.softmax(dim=1), strict=True):
            torch.testing.assert_close(sample.pred_score, scores)
            assert sample.pred_label == scores.argmax() and sample.gt_label in (1, 3)
        features = model.extract_feat(images, stage="pre_logits")
        assert features.dim() == 2 and model.head.fc(features).shape == (2, classes)
        torch.testing.assert_close(model.head.fc(features), logits)
        assert all(one.shape[0] == 2 for one in model.extract_feat(images, stage="backbone"))


def test_the_neck_and_head_of_ours_take_any_batch_size():
    model = build(OURS[1])
    for batch_size in (1, 3):
        with torch.no_grad():
            [outputs] = model(torch.zeros(batch_size, 3, 96, 64), mode="tensor")
        assert [tuple(out.shape) for out in outputs] == [(batch_size, 75, 96 // s, 64 // s) for s in (32, 16, 8)]
