"""The coverage benchmark on a fast subset: one backbone of each kind. All of them: ``benchmarks/coverage.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.backbones import CONVOLUTIONAL, LEFT_OUT, registered
from benchmarks.coverage import check


def test_every_registered_backbone_is_covered_or_left_out_for_a_reason():
    assert registered() == CONVOLUTIONAL.keys() | LEFT_OUT.keys()
    assert not CONVOLUTIONAL.keys() & LEFT_OUT.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, variant, share",
    [
        ("mmdet.ResNet", "50-dcn", 0.9),  # deformable convolutions: held
        ("mmdet.ResNet", "50-gn", 1),
        ("mmdet.ResNeXt", "", 1),  # grouped convolutions
        ("mmdet.TridentResNet", "", 1),  # other branches in training
        ("mmpretrain.ConvNeXt", "v2", 1),  # layer norm, layer scale
        ("mmpretrain.DenseNet", "", 1),
        ("mmpretrain.MobileOne", "", 1),  # reparameterisable
        ("mmpretrain.RepVGG", "B1g2", 1),  # grouped convolutions with more channels out than in
        ("mmpretrain.HorNet", "", 0.5),
        ("mmpretrain.ShuffleNetV1", "g3", 0),  # grouped convolutions behind a channel shuffle: all held
        ("mmpretrain.ShuffleNetV2", "", 0.6),  # channel shuffle: hidden channels
    ],
)
def test_invariants_hold(name, variant, share):
    row = check(name, variant)
    assert row["wrong"] == []
    assert row["share"] >= share and (row["share"] > 0) == (share > 0)
    assert row["error"] <= 1e-10
