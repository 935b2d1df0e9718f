"""The random crop: it leaves out what mmdet's never finds, and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import MinIoURandomCrop as Stock
from mmdet.structures.bbox import HorizontalBoxes

from mmnetaug.datasets import MinIoURandomCrop

IOUS = (0.1, 0.3, 0.5, 0.7, 0.9)


def annotated(*sides: int) -> dict:
    """An image of 60x80 pixels with square boxes."""
    boxes = torch.tensor([[5.0 + 9 * i, 5, 5 + 9 * i + side, 5 + side] for i, side in enumerate(sides)]).view(-1, 4)
    labels = np.zeros(len(sides), np.int64)
    return dict(img=np.zeros((60, 80, 3), np.uint8), gt_bboxes=HorizontalBoxes(boxes), gt_bboxes_labels=labels)


def drawn(crop: Stock, data, count: int) -> Counter:
    """How often each minimum IoU led to a crop (1: none)."""
    found: Counter = Counter()
    for _ in range(count):
        crop.transform(data())
        found[float(crop.mode)] += 1
    return found


@pytest.mark.parametrize(
    ("sides", "reached"),
    [
        ((8,), {0, 0.1, 1}),  # a crop has at least 17 x 23 pixels: IoU 0.16
        ((4,), {0, 1}),
        ((30, 8), {0, 0.1, 1}),  # the smallest decides
        ((40,), {0, 1, *IOUS}),
        ((), {0, 1, *IOUS}),
    ],
)
def test_only_minima_that_no_crop_reaches_are_left_out(sides, reached):
    np.random.seed(0)
    ours = MinIoURandomCrop(IOUS)
    modes = Counter()
    for _ in range(300):
        ours.transform(annotated(*sides))
        modes[float(ours._random_mode())] += 1
    assert modes.keys() == reached
    stock = Stock(IOUS)
    for unreached in set(IOUS) - reached:
        stock.sample_mode = (1, unreached)
        assert drawn(stock, lambda: annotated(*sides), 20).keys() == {1}


def test_crops_are_distributed_as_mmdets():
    """Frequencies of the minima that led to a crop, and mean area: 150 draws each, in standard deviations of them."""
    np.random.seed(0)
    count, areas, modes = 150, [], []
    for crop in (Stock(IOUS), MinIoURandomCrop(IOUS)):
        kept, found = [], Counter()
        for _ in range(count):
            height, width = crop.transform(annotated(12, 10))["img"].shape[:2]
            kept.append(height * width)
            found[float(crop.mode)] += 1
        areas.append(np.array(kept))
        modes.append(found)
    assert modes[0].keys() == modes[1].keys()
    for mode in modes[0]:
        rate = (modes[0][mode] + modes[1][mode]) / (2 * count)
        assert abs(modes[0][mode] - modes[1][mode]) < 3 * np.sqrt(2 * count * rate * (1 - rate))
    assert abs(areas[0].mean() - areas[1].mean()) < 3 * np.sqrt((areas[0].var() + areas[1].var()) / count)
