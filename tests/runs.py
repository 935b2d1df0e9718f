"""Short runs by MMEngine's Runner: noise images, everything on."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner
from networks import batch, detector_config
from torch import nn


@DATASETS.register_module(force=True)
class BoxedNoise(BaseDataset):
    """Eight noise images with boxes, without random transforms: the same batches in every run."""

    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(8)]

    def __getitem__(self, index: int) -> dict:
        one = batch(1, seed=index)
        return dict(inputs=(one["inputs"][0] * 255).to(torch.uint8), data_samples=one["data_samples"][0])


NETWORK = "resnet18"


@functools.cache
def traced() -> nn.Module:
    """The model of all runs, not initialised: tracing takes longer than a run."""
    config = dict(type="mmnetaug.NetAug", model=detector_config(NETWORK), width=[1, 1.5], expand=[1, 1.5])
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(ConfigDict(config))


def runner_config(work_dir: Path, **changes) -> dict:
    """Four epochs of four iterations, everything on: momentum, schedule, sorting, EMA, clipping."""
    config = dict(
        model=traced(),  # `run` copies it
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=dict(type="mmengine.BoxedNoise"),
            sampler=dict(type="DefaultSampler", shuffle=True),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=4),
        optim_wrapper=dict(
            type="mmnetaug.NetAugOptimWrapper",
            optimizer=dict(type="SGD", lr=1e-3, momentum=0.9, nesterov=True),
            clip_grad=dict(max_norm=5.0),
        ),
        param_scheduler=dict(type="CosineAnnealingLR", T_max=4, convert_to_iter_based=True),
        default_hooks=dict(
            checkpoint=dict(type="mmnetaug.TinyCheckpointHook", interval=1, max_keep_ckpts=2),
            logger=dict(type="LoggerHook", interval=1),
        ),
        custom_hooks=[
            dict(type="mmnetaug.NetAugScheduleHook", width_until=0.5),
            dict(type="mmnetaug.ChannelSortHook"),
            dict(type="EMAHook", momentum=0.1),
        ],
        randomness=dict(seed=0),
        default_scope="mmdet",
        experiment_name=work_dir.name,
        log_level="WARNING",
    )
    return {**config, **changes}


def run(work_dir: Path, **changes) -> Runner:
    runner = Runner(**copy.deepcopy(runner_config(work_dir, **changes)))
    runner.train()
    return runner


@HOOKS.register_module(force=True)
class StopHook(Hook):
    """Ends a run in the middle of its second epoch, while widths are sampled and channels sorted."""

    priority = "LOWEST"

    def after_train_iter(self, runner: Runner, batch_idx: int, **kwargs) -> None:
        if runner.iter == 5:
            raise KeyboardInterrupt
