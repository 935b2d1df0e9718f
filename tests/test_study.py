"""The study: every experiment builds, compares like with like, and what is measured is what is meant."""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, init_default_scope

import mmnetaug
from mmnetaug.apis.build import build_model
from mmnetaug.registry import OPTIM_WRAPPERS

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks import study  # noqa: E402
from benchmarks.study_runs import EXPERIMENTS, TASKS  # noqa: E402

NAMES = {experiment.name: experiment for experiment in EXPERIMENTS}


def merge(cfg: Config, options: Iterable[str]) -> None:
    pairs = (option.split("=", 1) for option in options)
    cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in pairs})


def load(experiment) -> Config:
    cfg = Config.fromfile(ROOT / "configs" / experiment.config)
    merge(cfg, experiment.options)
    init_default_scope(cfg.default_scope)
    return cfg


# What a network is made of is in its configs; options change values.
OF_EACH_CONFIG = list({(one.config, one.plain): one for one in reversed(EXPERIMENTS)}.values())


@pytest.mark.slow
@pytest.mark.parametrize("experiment", OF_EACH_CONFIG, ids=lambda experiment: experiment.name)
def test_experiment_builds_and_is_measured_by_its_plain_config(experiment, monkeypatch):
    monkeypatch.chdir(ROOT)  # the teacher is named by its path
    cfg = load(experiment)
    model = MODELS.build(cfg.model)
    assert hasattr(model, "elastic") == experiment.netaug
    wrapper = OPTIM_WRAPPERS.get(cfg.optim_wrapper.type)
    assert issubclass(wrapper, mmnetaug.NetAugOptimWrapper) == experiment.netaug
    plain_cfg = Config.fromfile(ROOT / "configs" / experiment.plain)
    merge(plain_cfg, study.network_options(experiment))
    plain = build_model(plain_cfg)
    plain.load_state_dict(mmnetaug.elastic.base_state_dict(model), strict=True)
    assert cfg.train_cfg.max_epochs == experiment.epochs and experiment.epochs % cfg.train_cfg.val_interval == 0


def test_comparisons_are_fair():
    assert len(NAMES) == len(EXPERIMENTS)
    for experiment in EXPERIMENTS:
        assert experiment.task in TASKS and experiment.size in (*experiment.sizes, 0)
        if experiment.baseline:
            baseline = NAMES[experiment.baseline]
            assert (baseline.plain, baseline.task, baseline.size) == (
                experiment.plain,
                experiment.task,
                experiment.size,
            )
            assert experiment.sizes in (baseline.sizes, baseline.sizes and (baseline.size,))
            longer = baseline.netaug and not experiment.netaug  # plain training may have NetAug's time
            assert experiment.epochs in ((baseline.epochs, 2 * baseline.epochs) if longer else (baseline.epochs,))
            assert set(experiment.seeds) <= set(baseline.seeds)
        assert all(0 in NAMES[name].seeds for name in experiment.needs)


def test_the_record_is_kept_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "DOCS", tmp_path)
    experiment = EXPERIMENTS[0]
    row = dict(
        experiment=experiment.name, settings=study.settings(experiment), minutes=1.5, machine="a, b", finished=""
    )
    for seed in (0, 1):
        study.keep(row | dict(seed=seed, test=50.25 + seed, train=None, test_curve={1: 40.0, 2: 50.25}, sizes={}))
    record = study.read_record()
    assert sorted(seed for _, seed in record) == [0, 1]
    kept = record[experiment.name, 0]
    assert (kept["test"], kept["train"], kept["test_curve"], kept["machine"]) == (
        50.25,
        None,
        {1: 40, 2: 50.25},
        "a, b",
    )
    study.keep(row | dict(seed=1, test=60.0))
    assert len(study.read_record()) == 2 and study.read_record()[experiment.name, 1]["test"] == 60
    lines = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    study.keep(lines[0] | dict(settings="other"))
    with pytest.raises(SystemExit, match="not what the manifest has now"):
        study.read_record()


def test_a_run_in_which_nothing_was_augmented_is_reported():
    experiment = NAMES["micro, authors' init"]
    row = dict(test=70.0, train=72.0, minutes=6.0, loss_ratio={})
    assert "| 72.00 | – | 6.0 |" in study.table({(experiment.name, 0): row}, [experiment])[-1]


def test_paired_intervals_are_student_s():
    mean, half = study.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 * statistics.stdev([1, 2, 3]) / 3**0.5)  # t of two degrees of freedom


def test_loss_ratio_is_of_the_means_over_an_epoch_and_all_interruptions(tmp_path):
    for part, entries in enumerate(([(1, 2.0, 3.0), (1, 4.0, 3.0), (2, 2.0, 2.5)], [(2, 2.0, 2.5)])):
        log = tmp_path / str(part) / "vis_data/scalars.json"
        log.parent.mkdir(parents=True)
        lines = [json.dumps(dict(epoch=epoch, loss=loss, loss_aug=augmented)) for epoch, loss, augmented in entries]
        log.write_text("\n".join([*lines, json.dumps(dict(step=2, accuracy=50.0))]))
    assert study.loss_ratio(tmp_path) == {1: 1.0, 2: 1.25}


def make_step(kind: str, **settings):
    from benchmarks import study_parts

    cfg = Config.fromfile(ROOT / "configs/study/micro_netaug.py")
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    wrapper = getattr(study_parts, kind, mmnetaug.NetAugOptimWrapper)
    return model, wrapper(torch.optim.SGD(model.parameters(), lr=0.0), **settings)


def gradients_of(kind: str, **settings) -> tuple[torch.Tensor, object, torch.nn.Module]:
    """Gradients of all stored weights after one step's passes."""
    model, wrapper = make_step(kind, **settings)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(i) for i in range(8)]
    wrapper.zero_grad = lambda **kwargs: None
    with wrapper.optim_context(model):
        losses = model(images, samples, mode="loss")
    wrapper.update_params(model.parse_losses(losses)[0])
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients]), wrapper, model


def test_matched_init_does_not_silence_new_channels():
    model, _ = make_step("NetAugOptimWrapper")
    model.init_weights()
    head = model.head.fc
    assert not head.stored("weight")[:, 64:].any()
    cfg = Config.fromfile(ROOT / "configs/study/micro_netaug.py")
    matched = MODELS.build(cfg.model | dict(type="mmnetaug.MatchedNetAug"))
    matched.init_weights()
    assert matched.head.fc.stored("weight")[:, 64:].all()


@pytest.mark.slow
def test_variants_of_the_step_do_what_they_are_called():
    base, _, _ = gradients_of("", alpha=0.0)
    one, _, _ = gradients_of("")
    other, _, _ = gradients_of("", seed=1_000_003)
    two, _, model = gradients_of("TwoNetworksOptimWrapper")
    torch.testing.assert_close(two - base, (one - base) + (other - base), rtol=1e-4, atol=1e-5)
    _, _, shared = gradients_of("SharedStatisticsOptimWrapper")
    means = [m.backbone.stem.bn.running_mean for m in (model, shared)]
    assert not torch.equal(*means)
    _, wrapper, model = gradients_of("MeasuringOptimWrapper")
    from benchmarks.study_parts import shared_gradients

    for parameter, both, plain in zip(model.parameters(), _split(one, model), _split(base, model), strict=True):
        parameter.grad = plain
        parameter.both = both
    first = shared_gradients(model)
    for parameter in model.parameters():
        parameter.grad = parameter.both
    expected = torch.cosine_similarity(first, shared_gradients(model) - first, dim=0).item()
    assert wrapper.message_hub.get_scalar("train/gradient_cosine").current() == pytest.approx(expected, abs=1e-4)


def _split(flat: torch.Tensor, model: torch.nn.Module) -> list[torch.Tensor]:
    parameters = list(model.parameters())
    pieces = flat.split([parameter.numel() for parameter in parameters])
    return [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]
