"""Whole runs by MMEngine's Runner: resuming, tiny twins, failed writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from networks import detector_config
from runs import NETWORK, run, runner_config

from mmnetaug.elastic import base_state_dict
from mmnetaug.engine import hooks as hooks_module
from mmnetaug.errors import WriteError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> tuple[Runner, Path]:
    work_dir = tmp_path_factory.mktemp("whole")
    return run(work_dir), work_dir


@pytest.mark.parametrize("settings", [{}, dict(distill=dict(), surgery="all", normalize=True)], ids=["", "distilled"])
def test_a_resumed_run_is_bit_identical(settings, whole_run, tmp_path, monkeypatch):
    """Schedule, sorting, EMA, momentum and sampled widths included."""
    optim_wrapper = {**runner_config(tmp_path)["optim_wrapper"], **settings}
    reference = run(tmp_path / "whole", optim_wrapper=optim_wrapper) if settings else whole_run[0]
    hooks = [*runner_config(tmp_path)["custom_hooks"], dict(type="mmengine.StopHook")]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", optim_wrapper=optim_wrapper, custom_hooks=hooks)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # one's own checkpoint; tools/train.py does the same
    resumed = run(tmp_path / "cut", optim_wrapper=optim_wrapper, resume=True)
    assert resumed.iter == reference.iter == 16
    for (name, one), (_, other) in zip(
        resumed.model.state_dict().items(), reference.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    averages = [next(h for h in r.hooks if isinstance(h, EMAHook)).ema_model for r in (resumed, reference)]
    for one, other in zip(averages[0].state_dict().values(), averages[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("kind", "clip_together"), [("mmnetaug.NetAugOptimWrapper", False), ("mmnetaug.NetAugAmpOptimWrapper", True)]
)
def test_a_run_resumed_between_accumulated_gradients_is_bit_identical(tmp_path, monkeypatch, kind, clip_together):
    """Epochs of four iterations, steps of three: the first epoch's checkpoint holds one iteration's gradients."""
    before = runner_config(tmp_path)
    settings = dict(
        optim_wrapper=before["optim_wrapper"] | dict(type=kind, accumulative_counts=3, clip_together=clip_together),
        train_cfg=dict(by_epoch=True, max_epochs=2),
    )
    reference = run(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", custom_hooks=[*before["custom_hooks"], dict(type="mmengine.StopHook")], **settings)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    resumed = run(tmp_path / "cut", resume=True, **settings)
    assert resumed.iter == reference.iter == 8
    ends = [
        {**r.model.state_dict(), **next(h for h in r.hooks if isinstance(h, EMAHook)).ema_model.state_dict()}
        for r in (resumed, reference)
    ]
    assert [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])] == []
    full = torch.load(tmp_path / "whole/epoch_2.pth", weights_only=False)
    assert "accumulated_gradients" not in full  # the last iteration makes a step whatever it has


def test_checkpoints_have_tiny_twins_of_the_ema_network(whole_run):
    runner, work_dir = whole_run
    files = sorted(path.name for path in work_dir.glob("*.pth*"))
    assert files == ["epoch_3.pth", "epoch_3_tiny.pth", "epoch_4.pth", "epoch_4_tiny.pth"]
    tiny = torch.load(work_dir / "epoch_4_tiny.pth", weights_only=True)
    plain = MODELS.build(detector_config(NETWORK))
    plain.load_state_dict(tiny["state_dict"], strict=True)
    average = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
    for key, value in base_state_dict(average).items():
        if value.is_floating_point() and "running" not in key:
            assert torch.equal(value, tiny["state_dict"][key]), key
    assert tiny["meta"]["epoch"] == 4


def test_width_augmentation_ends_where_the_schedule_says(whole_run):
    runner, _ = whole_run
    assert (runner.optim_wrapper.width, runner.optim_wrapper.expand) == (False, True)


def test_one_rank_alone_writes_twins(whole_run, monkeypatch):
    runner, work_dir = whole_run
    hook = next(h for h in runner.hooks if isinstance(h, hooks_module.TinyCheckpointHook))
    twin = work_dir / "epoch_4_tiny.pth"
    content = twin.read_bytes()
    twin.unlink()
    with monkeypatch.context() as other_rank:
        other_rank.setattr("mmengine.dist.utils.is_main_process", lambda: False)
        hook._finish(runner, [str(work_dir / "epoch_4.pth")])
    assert not twin.exists()
    twin.write_bytes(content)


def test_a_missing_twin_is_made_from_its_own_checkpoint(tmp_path, monkeypatch):
    """A run that was killed between a best checkpoint and its twin, and whose next epoch is no better."""
    runner = run(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1), custom_hooks=[])
    hook = next(h for h in runner.hooks if isinstance(h, hooks_module.TinyCheckpointHook))
    before = torch.load(tmp_path / "epoch_1_tiny.pth", weights_only=True)
    (tmp_path / "epoch_1_tiny.pth").unlink()
    with torch.no_grad():
        for parameter in runner.model.parameters():
            parameter.add_(1)
    hook._finish(runner, [str(tmp_path / "epoch_1.pth")])
    after = torch.load(tmp_path / "epoch_1_tiny.pth", weights_only=True)
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    """Nothing half-written under a final name, and the old checkpoint goes only when the new one is complete."""
    run(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1), custom_hooks=[])
    before = {path.name for path in tmp_path.glob("*.pth")}
    assert before == {"epoch_1.pth", "epoch_1_tiny.pth"}

    def disk_full(*args):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, "replace", disk_full)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(WriteError, match=r"epoch_2\.pth cannot be written: No space left"):
        run(
            tmp_path,
            resume=True,
            train_cfg=dict(by_epoch=True, max_epochs=2),
            custom_hooks=[],
            default_hooks=dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook", max_keep_ckpts=1)),
        )
    assert {path.name for path in tmp_path.glob("*.pth")} == before
    assert (tmp_path / "last_checkpoint").read_text().endswith("epoch_1.pth")
