"""Curves of accuracy over cost, on points whose answer is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mmnetaug.analysis.tradeoff import Point, frontier, macs_at, macs_saved, plot_tradeoff


def points(*pairs: tuple[float, float]) -> list[Point]:
    """Points of (M MACs, accuracy)."""
    return [
        Point(32 * (i + 1), accuracy, round(macs * 1e6), 1000, 1000, 1.0) for i, (macs, accuracy) in enumerate(pairs)
    ]


def test_equal_accuracy_at_six_tenths_of_the_cost():
    reference = points((100, 0.4), (200, 0.5), (300, 0.55), (400, 0.6))
    other = points((60, 0.4), (120, 0.5), (180, 0.55), (240, 0.6))
    saving = macs_saved(reference, other)
    assert (saving.low, saving.high) == (0.4, 0.6)
    assert saving.fractions == pytest.approx([0.4] * len(saving.fractions))
    assert "40% fewer MACs at 0.600" in str(saving)


def test_the_curve_is_monotone_and_goes_through_the_points():
    measured = points((10, 0.1), (11, 0.5), (50, 0.51), (100, 0.9))
    assert macs_at(measured, [0.1, 0.5, 0.51, 0.9]) == pytest.approx([10e6, 11e6, 50e6, 100e6])
    assert (np.diff(macs_at(measured, np.linspace(0.1, 0.9, 500))) >= 0).all()


def test_only_the_common_range_counts():
    saving = macs_saved(points((100, 0.2), (200, 0.5)), points((50, 0.3), (150, 0.7)))
    assert (saving.low, saving.high) == (0.3, 0.5)
    assert macs_saved(points((100, 0.2), (200, 0.3)), points((50, 0.4), (150, 0.7))) is None
    with pytest.raises(ValueError, match="nothing is known beyond"):
        macs_at(points((100, 0.2), (200, 0.5)), [0.6])


def test_points_that_a_cheaper_one_beats_are_left_out():
    measured = points((100, 0.2), (200, 0.5), (300, 0.4), (300, 0.45), (400, 0.5), (500, 0.6))
    assert [point.macs / 1e6 for point in frontier(measured)] == [100, 200, 500]


def test_costing_more_is_said():
    saving = macs_saved(points((100, 0.2), (200, 0.5)), points((120, 0.2), (250, 0.5)))
    assert saving.at_best == pytest.approx(-0.25)
    assert "saves no MACs" in str(saving)


@pytest.mark.parametrize("flat", [False, True], ids=["curve", "one point"])
def test_plot(tmp_path, flat):
    reference = points((100, 0.4)) if flat else points((100, 0.4), (200, 0.5))
    plot_tradeoff({"baseline": reference, "NetAug": points((60, 0.4), (120, 0.5))}, "AP50", tmp_path / "plot")
    assert cv2.imread(str(tmp_path / "plot")).std() > 0
