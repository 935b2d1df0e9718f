"""Existing configs train with the two changes that the README shows, and give back stock networks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample
from stock import config_path, made_quick, without_downloads
from test_library_checks import BOXES, build, check_classifier, check_detector

from mmnetaug.models.tensor_mode import tensor_forward

CONFIGS = [
    "mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py",
    "mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py",
    "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py",
    "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py",
    "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "mmdet::atss/atss_r50_fpn_1x_coco.py",
    "mmpretrain::resnet/resnet18_8xb32_in1k.py",
    "mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py",
    "mmpretrain::mobilenet_v3/mobilenet-v3-small_8xb128_in1k.py",
    "mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py",
]
DISTILLED = ("rtmdet", "retinanet", "faster_rcnn", "mobilenet_v2/mobilenet-v2", "yolo/")
"""Those of them that are also distilled in place, by one more setting."""
CHECKED = ("ssdlite", "yolox", "retinanet", "faster_rcnn", "resnet18", "efficientnet")
"""Those that are also checked as MMDetection and MMPretrain check their own models."""
SIZE = 128

TWO_CHANGES = """
_base_ = '{base}'
custom_imports = dict(imports=['mmnetaug'])
model = dict(_delete_=True, type='mmnetaug.NetAug', model={{{{_base_.model}}}},
             expand=[1, 1.4], width=[1, 1.4])
optim_wrapper = dict(type='mmnetaug.NetAugOptimWrapper')
"""


@DATASETS.register_module(force=True)
class RandomScenes(BaseDataset):
    """Noise images, each with one box and one label, as a pipeline would hand them over."""

    METAINFO: ClassVar = dict(classes=("thing",))

    def __init__(self, scope: str) -> None:
        self.scope = scope
        super().__init__()

    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(6)]

    def __getitem__(self, index: int) -> dict:
        generator = np.random.default_rng(index)
        image = torch.from_numpy(generator.integers(0, 255, (3, SIZE, SIZE)).astype(np.uint8))
        if self.scope == "mmpretrain":
            return dict(inputs=image, data_samples=DataSample().set_gt_label(index))
        sample = DetDataSample(
            metainfo=dict(img_id=index, img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), scale_factor=(1.0, 1.0))
        )
        boxes = torch.tensor([[20.0, 30.0, 90.0, 100.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.zeros(1, dtype=torch.long))
        sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long))
        return dict(inputs=image, data_samples=sample)


@pytest.mark.slow
@pytest.mark.parametrize("base", CONFIGS, ids=lambda name: name.rpartition("/")[2])
def test_two_changes_are_enough(base, tmp_path):
    (tmp_path / "mine.py").write_text(TWO_CHANGES.format(base=base))
    config = Config.fromfile(tmp_path / "mine.py")
    made_quick(without_downloads(config.model.model))
    distilled = any(name in base for name in DISTILLED)
    if distilled:
        config.optim_wrapper.distill = dict()
    scope = base.partition("::")[0]
    loader = dict(
        batch_size=2,
        num_workers=0,
        dataset=dict(type="mmengine.RandomScenes", scope=scope),
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=dict(type="pseudo_collate" if scope == "mmdet" else "default_collate"),
    )
    runner = Runner(
        model=config.model,
        data_preprocessor=config.get("data_preprocessor"),
        work_dir=str(tmp_path),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=2),
        optim_wrapper={**config.optim_wrapper, "optimizer": {**config.optim_wrapper.optimizer, "lr": 1e-4}},
        default_hooks=dict(
            checkpoint=dict(type="mmnetaug.TinyCheckpointHook", by_epoch=False),
            logger=dict(type="LoggerHook", interval=1),
        ),
        default_scope=scope,
        experiment_name=tmp_path.name,
        randomness=dict(seed=0),
    )
    runner.train()
    for name in ["train/loss_aug", "train/loss_distill"][: 1 + distilled]:
        logged = runner.message_hub.get_scalar(name).data[0]
        assert len(logged) == 2 and np.isfinite(logged).all(), name

    untouched = Config.fromfile(config_path(base))
    with DefaultScope.overwrite_default_scope(scope):
        if "data_preprocessor" in untouched:
            untouched.model.setdefault("data_preprocessor", untouched.data_preprocessor)
        made_quick(without_downloads(untouched.model))
        stock = MODELS.build(untouched.model)
    tiny = torch.load(tmp_path / "iter_2_tiny.pth", weights_only=True)
    stock.load_state_dict(tiny["state_dict"], strict=True)
    ours = runner.model.eval()
    stock.eval()
    batch = next(iter(runner.train_dataloader))
    with torch.no_grad():
        inputs = stock.data_preprocessor(batch, training=False)["inputs"]
        mine, theirs = (tensor_forward(model, inputs) for model in (ours, stock))
        assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
        for one, other in zip(ours.test_step(batch), stock.test_step(batch), strict=True):
            assert_same(predicted(one), predicted(other))


@pytest.mark.slow
@pytest.mark.parametrize(
    "base",
    [base for base in CONFIGS if any(name in base for name in CHECKED)],
    ids=lambda name: name.rpartition("/")[2],
)
def test_losses_predictions_and_raw_outputs(base):
    """Of the networks above, which are therefore not traced again."""
    model = build(base)
    if base.startswith("mmpretrain"):
        check_classifier(model)
    else:
        for boxes in BOXES:
            check_detector(model, boxes)


def predicted(sample: DetDataSample | DataSample) -> dict:
    """What a model predicts for one image."""
    instances = sample.pred_instances if isinstance(sample, DetDataSample) else sample
    return {key: instances.get(key) for key in ("bboxes", "scores", "labels", "pred_score", "pred_label")}


def assert_same(ours: dict, theirs: dict) -> None:
    found = [key for key, value in theirs.items() if value is not None]
    assert found
    for key in found:
        assert torch.equal(ours[key], theirs[key])
