"""The study of tiny detectors from wide ones: which runs it makes, and how it compares them."""

from __future__ import annotations

import argparse
import math

import pytest

from benchmarks import wide_start


@pytest.fixture
def results(tmp_path, monkeypatch):
    for name, file in dict(RESULTS="w.csv", PAGE="w.md", PLOT="w.png", READING="reading.md", FOLDER="runs").items():
        monkeypatch.setattr(wide_start, name, tmp_path / file)
    (tmp_path / "reading.md").write_text("- Nothing yet.\n")
    return tmp_path


def run(*runs: str, seeds: tuple[int, ...] = (0,)) -> None:
    wide_start.run(argparse.Namespace(runs=runs, seeds=seeds))


def test_the_wide_detector_is_trained_first_and_once(results, monkeypatch):
    trained = []

    def train(method, epochs, seed):
        trained.append((method, epochs, seed))
        path = wide_start.checkpoint(method, epochs, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return dict(ap50=0.5, minutes=1.0)

    monkeypatch.setattr(wide_start, "train", train)
    run("plain:64")
    run("cut:28", "taught:28", "plain:64", seeds=(0, 1))
    of_seed_0 = [("plain", 64, 0), ("wide", 28, 0), ("cut", 28, 0), ("taught", 28, 0)]
    assert trained == [*of_seed_0, ("wide", 28, 1), ("cut", 28, 1), ("taught", 28, 1), ("plain", 64, 1)]
    trained.clear()
    wide_start.checkpoint("wide", 28, 0).unlink()
    run("cut:56")
    assert trained == [("wide", 28, 0), ("cut", 56, 0)]  # anew, for its weights
    assert [row["method"] for row in wide_start.results()].count("wide") == 2  # and recorded once a seed


def test_differences_are_paired_by_seed_and_minutes_count_the_wide_detector(results):
    for seed, (plain, cut) in enumerate([(0.1, 0.4), (0.2, 0.4), (0.3, 0.7)]):
        for method, epochs, ap50 in (("plain", 64, plain), ("wide", 28, 0.5), ("cut", 28, cut)):
            wide_start.record(dict(method=method, epochs=epochs, seed=seed, ap50=ap50, minutes=epochs / 10))
    wide_start.record(dict(method="cut", epochs=28, seed=3, ap50=0.9, minutes=2.8))  # of no pair
    wide_start.report(None)
    rows = [
        line.strip("| ").split(" | ") for line in wide_start.PAGE.read_text().splitlines() if line.startswith("| cut")
    ]
    half = 4.3027 * 0.1 / math.sqrt(3)  # Student's t of 2 degrees of freedom; 0.3, 0.2 and 0.4 deviate by 0.1
    of_four = 3.1824 * math.sqrt(0.18 / 3) / math.sqrt(4)  # 0.4, 0.4, 0.7 and 0.9
    assert rows == [["cut from the wide one", "28", "4", f"0.600 ± {of_four:.3f}", "5.6", "", f"0.300 ± {half:.3f}"]]
    assert wide_start.PLOT.stat().st_size
