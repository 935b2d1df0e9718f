"""The schedule in short runs, and statistics that are re-estimated."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from networks import build_pair, detector_config
from runs import BoxedNoise, run, runner_config
from torch.utils.data import DataLoader

from mmnetaug import NetAugScheduleHook
from mmnetaug.elastic import base_state_dict
from mmnetaug.engine import hooks as hooks_module


def test_statistics_can_be_reestimated():
    """By MMPretrain's PreciseBNHook, which replaces the buffers: those of the tiny network alone."""
    from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats  # after mmnetaug, in spawned processes too

    elastic, plain = build_pair(detector_config("resnet18"))
    elastic.elastic.driven = True
    plain.load_state_dict(base_state_dict(elastic), strict=True)
    shapes = {name: buffer.shape for name, buffer in elastic.state_dict().items()}
    loader = DataLoader(BoxedNoise(), batch_size=2, collate_fn=pseudo_collate)
    before = base_state_dict(elastic)
    for model in (elastic, plain):
        update_bn_stats(model.train(), loader, num_samples=8, logger="silent")
    after = plain.state_dict()
    for name, value in base_state_dict(elastic).items():
        assert torch.equal(value, after[name]), name
    assert any(not torch.equal(before[name], after[name]) for name in before if "running_var" in name)
    assert {name: buffer.shape for name, buffer in elastic.state_dict().items()} == shapes


def test_with_everything_off_training_is_plain(tmp_path):
    runner = run(
        tmp_path,
        custom_hooks=[dict(type="mmnetaug.NetAugScheduleHook", width_until=2, expand_until=3, by_epoch=False)],
        train_cfg=dict(by_epoch=False, max_iters=4),
        param_scheduler=None,
        default_hooks=dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook", by_epoch=False, interval=100)),
    )
    assert len(runner.message_hub.get_scalar("train/loss_aug").data[0]) == 3


def test_hooks_that_count_epochs_refuse_training_without(tmp_path):
    for hook in (dict(type="mmnetaug.ChannelSortHook"), dict(type="mmnetaug.NetAugScheduleHook", width_until=2)):
        with pytest.raises(ValueError, match="by_epoch=False"):
            run(
                tmp_path,
                custom_hooks=[hook],
                train_cfg=dict(by_epoch=False, max_iters=4),
                param_scheduler=None,
                default_hooks=dict(checkpoint=None),
            )


def test_a_share_of_a_training_by_iterations(tmp_path):
    runner = run(
        tmp_path,
        custom_hooks=[dict(type="mmnetaug.NetAugScheduleHook", width_until=0.25, expand_until=0.5)],
        train_cfg=dict(by_epoch=False, max_iters=4),
        param_scheduler=None,
        default_hooks=dict(checkpoint=None),
    )
    assert len(runner.message_hub.get_scalar("train/loss_aug").data[0]) == 2


def test_the_schedule_switches_between_steps(tmp_path, monkeypatch):
    """Steps of three iterations, width and expand augmentation off after four: the second step is augmented in full."""
    sorts = []
    monkeypatch.setattr(hooks_module, "sort_hidden_channels", lambda *args: sorts.append(len(sorts)))
    optim_wrapper = {**runner_config(tmp_path)["optim_wrapper"], "accumulative_counts": 3}
    runner = run(
        tmp_path,
        optim_wrapper=optim_wrapper,
        custom_hooks=[
            dict(type="mmnetaug.NetAugScheduleHook", width_until=1, expand_until=1),
            dict(type="mmnetaug.ChannelSortHook"),
        ],
        default_hooks=dict(checkpoint=None),
    )
    assert sorts == [0]  # the next is due when the augmentation has ended
    assert len(runner.message_hub.get_scalar("train/loss_aug").data[0]) == 6


@pytest.mark.parametrize("hook", ["NetAugScheduleHook", "ChannelSortHook"])
def test_a_schedule_without_netaug_is_an_error(tmp_path, hook):
    with pytest.raises(TypeError, match="NetAugOptimWrapper"):
        run(
            tmp_path,
            model=detector_config("mobilenet_v3"),
            optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=1e-3)),
            custom_hooks=[dict(type=f"mmnetaug.{hook}")],
        )


def test_the_schedule_rejects_nonsense():
    with pytest.raises(ValueError, match="width_until"):
        NetAugScheduleHook(width_until=-1)


def test_a_runner_that_only_validates_needs_no_training(tmp_path):
    config = runner_config(tmp_path, custom_hooks=None, train_dataloader=None, train_cfg=None, param_scheduler=None)
    loader = dict(batch_size=2, dataset=dict(type="mmengine.BoxedNoise"), sampler=dict(type="DefaultSampler"))
    evaluator = dict(type="DumpResults", out_file_path=str(tmp_path / "predictions.pkl"))
    config |= dict(optim_wrapper=None, val_dataloader=loader, val_cfg=dict(), val_evaluator=evaluator)
    Runner(**copy.deepcopy(config)).val()
    assert (tmp_path / "predictions.pkl").is_file()
