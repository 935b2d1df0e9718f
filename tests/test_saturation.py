"""The study at saturation: what it runs, what it chooses by, and that each method trains."""

from __future__ import annotations

import argparse
import math

import pytest
import torch
from mmpretrain.structures import DataSample

from benchmarks import saturation
from mmnetaug.registry import OPTIM_WRAPPERS


class RandomData(saturation.Data):
    """Noise images of ten classes; held-out and test images apart."""

    def __init__(self, root: str = "") -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn((640, 3, 32, 32), generator=generator)
        labels = torch.arange(640) % 10
        self.images, self.labels = images[:256], labels[:256]
        self.samples = [DataSample().set_gt_label(int(label)) for label in self.labels]
        self.held_out, self.test = (images[256:384], labels[256:384]), (images[384:], labels[384:])


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(saturation, "RESULTS", tmp_path / "saturation.csv")
    monkeypatch.setattr(saturation, "PAGE", tmp_path / "saturation.md")
    monkeypatch.setattr(saturation, "PLOT", tmp_path / "saturation.png")
    monkeypatch.setattr(saturation, "Data", RandomData)
    return tmp_path


def run(**arguments) -> None:
    defaults = dict(cifar="", network="nano", methods=["plain", "NetAug"], seeds=[0], rates=None, epochs=None)
    saturation.run(argparse.Namespace(**defaults | arguments))


def test_rates_are_chosen_by_held_out_accuracy_of_seed_0(results, monkeypatch):
    """The test accuracy says otherwise, and has no say. A second call finds everything done."""
    trained = []

    def train(data, network, method, rate, epochs, seed, label):
        trained.append((method.settings is None, rate, seed))
        best = 0.4 if method.settings is None else 0.2
        return dict(held_out=60 - abs(rate - best), test=rate, train_loss=1.0, minutes=1.0)

    monkeypatch.setattr(saturation, "train", train)
    run()
    assert trained == [(True, r, 0) for r in (0.4, 0.8, 0.2)] + [(False, r, 0) for r in (0.4, 0.8, 0.2, 0.1)]
    trained.clear()
    run(seeds=[0, 1])
    assert trained == [(True, 0.4, 1), (False, 0.2, 1)]
    with pytest.raises(SystemExit, match="run seed 0"):
        run(methods=["distillation, surgery"], seeds=[1])
    with pytest.raises(SystemExit, match="run seed 0"):
        run(methods=["distillation"], epochs=20)  # no search at another number of epochs
    saturation.report(None)
    page = (results / "saturation.md").read_text()
    assert "| **plain** | 40 | 0.4 | 2 |" in page and "| **NetAug** | 40 | 0.2 | 2 |" in page
    assert "-0.20 ± 0.00" in page  # 0.2 - 0.4, both seeds
    assert "Nothing is claimed of plain (2 of 8 seeds), NetAug (2 of 8 seeds), distillation (0 of 8 seeds)." in page


@pytest.mark.parametrize(
    "method",
    [
        "plain",
        "distillation, largest network often",
        "distillation, last third",
        "distillation, width to the end, averaged teacher",
        "wide teacher, cut from it",
    ],
)
def test_a_method_trains(method, results, monkeypatch):
    monkeypatch.setattr(saturation, "WIDE", results)
    figures = saturation.train(RandomData(), "nano", saturation.METHODS[method], 0.1, 3, 0, method)
    assert all(math.isfinite(value) for value in figures.values())
    assert ("largest" in figures) == method.startswith("distillation")
    wide = ["nano x2.8"] if method.startswith("wide teacher") else []
    assert [row["network"] for row in saturation.results()] == wide  # its minutes are told, too


def test_additional_channels_alone_learn_from_the_augmented_pass():
    """Without distillation the tiny network then makes the step of plain training."""
    data, states = RandomData(), []
    for method in (saturation.Method(), saturation.Method(dict(type="mmnetaug.TeacherOnlyOptimWrapper"))):
        torch.manual_seed(0)
        model = saturation.build("nano", method)
        wrapper = OPTIM_WRAPPERS.build(
            dict(type="OptimWrapper", optimizer=torch.optim.SGD(model.parameters(), 0.1)) | (method.settings or {})
        )
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        with wrapper.optim_context(model):
            losses = model(data.images[:32], data.samples[:32], mode="loss")
        wrapper.update_params(model.parse_losses(losses)[0])
        states.append((before, dict(model.named_parameters())))
    (plain_before, plain), (before, elastic) = states
    for name, weight in plain.items():
        block = tuple(map(slice, weight.shape))
        same = torch.allclose(weight - plain_before[name], elastic[name][block] - before[name][block], atol=1e-6)
        assert same == (name != "head.fc.bias"), name  # which has no additional entries
    reads = "backbone.stages.1.project_conv.conv.weight"  # reads additional channels, which start at zero
    assert (elastic[reads] != before[reads])[:, 12:].any()


def test_the_interval_is_students():
    """By a table: t = 4.303 with two degrees of freedom."""
    assert saturation.interval([1.0, 2.0, 3.0]) == f"+2.00 ± {4.3027 / math.sqrt(3):.2f}"
