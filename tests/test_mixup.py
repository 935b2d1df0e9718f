"""Detection mixup: both images and all boxes are kept, and each box's loss is weighted by its image's share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from networks import detector_config

from mmnetaug.datasets import DetectionMixUp


def image(value, boxes, size=(20, 30)):
    return dict(
        img=np.full((*size, 3), value, np.uint8),
        img_shape=size,
        gt_bboxes=HorizontalBoxes(np.float32(boxes).reshape(-1, 4)),
        gt_bboxes_labels=np.arange(len(boxes)),
        gt_ignore_flags=np.array([i == 1 for i in range(len(boxes))]),
    )


def test_images_are_blended_and_all_boxes_kept(monkeypatch):
    monkeypatch.setattr(np.random, "beta", lambda a, b: 0.25)
    one = image(200, [[0, 0, 5, 5], [1, 1, 9, 9]])
    other = image(100, [[2, 2, 10, 10]], size=(40, 10))
    mixed = DetectionMixUp().transform({**one, "mix_results": [other]})
    assert mixed["img"].shape == (40, 30, 3) and mixed["img_shape"] == (40, 30)
    assert mixed["img"][0, 0, 0] == 125 and mixed["img"][0, 29, 0] == 50
    assert mixed["img"][39, 0, 0] == 75 and mixed["img"][39, 29, 0] == 0
    assert mixed["gt_bboxes"].tensor.tolist() == [[0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 10, 10]]
    assert mixed["gt_bboxes_labels"].tolist() == [0, 1, 0]
    assert mixed["gt_weights"].tolist() == [0.25, 0.25, 0.75]
    packing = TRANSFORMS.build(dict(type="mmnetaug.PackMixedDetInputs", meta_keys=()))
    with pytest.raises(ValueError, match="before DetectionMixUp"):
        packing.transform({**mixed, "gt_bboxes": mixed["gt_bboxes"][1:]})
    packed = packing.transform(mixed)
    instances = packed["data_samples"].gt_instances
    assert instances.weights.tolist() == [0.25, 0.75]  # the second box is to be ignored
    assert instances.labels.tolist() == [0, 0]


def test_an_image_without_boxes_is_blended_too():
    mixed = DetectionMixUp().transform({**image(10, [[0, 0, 5, 5]]), "mix_results": [image(10, [])]})
    assert len(mixed["gt_weights"]) == len(mixed["gt_bboxes"]) == 1


@pytest.fixture(scope="module")
def head():
    with DefaultScope.overwrite_default_scope("mmdet"):
        config = detector_config("resnet18")
        return MODELS.build({**config["bbox_head"], "train_cfg": config["train_cfg"]}).double()


def losses(head, boxes, labels, weights=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(1, 2 * 8, n, n, generator=generator, dtype=torch.float64) for n in (2, 4, 8)]
    instances = InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.tensor(labels))
    if weights is not None:
        instances.weights = torch.tensor(weights)
    found = head.loss_by_feat(maps, [instances], [dict(img_shape=(64, 64))])
    return {name: sum(levels).item() for name, levels in found.items()}


BOXES = [[4.0, 4.0, 30.0, 34.0], [40.0, 38.0, 60.0, 62.0]]  # in cells of their own on every level


def test_weights_of_one_change_nothing(head):
    assert losses(head, BOXES, [0, 2], [1.0, 1.0]) == losses(head, BOXES, [0, 2])


@pytest.mark.parametrize("name", ["loss_cls", "loss_xy", "loss_wh"])
def test_each_box_counts_by_its_weight(head, name):
    """Without overlap, the losses of two boxes are the sum of those of each."""
    first, second = (losses(head, [box], [label])[name] for box, label in zip(BOXES, (0, 2), strict=True))
    assert losses(head, BOXES, [0, 2])[name] == pytest.approx(first + second)
    assert losses(head, BOXES, [0, 2], [0.25, 0.75])[name] == pytest.approx(0.25 * first + 0.75 * second)


def test_objectness_is_to_be_one_and_counts_by_weight(head):
    """Linear in the weights, between the negatives' share and the full loss."""
    full = losses(head, BOXES, [0, 2], [1.0, 1.0])["loss_conf"]
    half = losses(head, BOXES, [0, 2], [0.5, 0.5])["loss_conf"]
    tenth = losses(head, BOXES, [0, 2], [0.1, 0.1])["loss_conf"]
    assert full - half == pytest.approx((half - tenth) * 0.5 / 0.4)
    assert tenth < half < full
