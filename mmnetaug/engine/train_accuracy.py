"""Learning curves (the paper's figure 4): the tiny network on training images, seen as test images are."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import Subset

from mmnetaug.config import as_list, first_pipeline, with_pipeline
from mmnetaug.registry import HOOKS


@HOOKS.register_module()
class TrainAccuracyHook(Hook):
    """Evaluates on part of the training images, by the pipeline and metrics of validation, after every validation.

    The loss of training says little about under-fitting: its images are augmented and its labels smoothed. The values
    are logged beside those of validation, under the same names behind ``train_``: in log, ``scalars.json`` and
    TensorBoard.

    Args:
        images: How many training images, the same ones every time; all of them if there are fewer.
    """

    priority = "VERY_HIGH"  # before an EMAHook of any priority takes the averaged weights away

    def __init__(self, images: int = 10000) -> None:
        self.images = images
        self._loader: Any = None
        self._evaluator: Evaluator | None = None

    def before_train(self, runner: Runner) -> None:
        """Builds the loader and the evaluator.

        Raises:
            ValueError: The evaluator reads the validation images' annotations from a file of its own.
        """
        if not runner.cfg.get("val_dataloader"):
            return
        if any(evaluator.get("ann_file") for evaluator in as_list(runner.cfg.val_evaluator)):
            raise ValueError(
                "TrainAccuracyHook cannot measure training images by an evaluator with an ann_file (CocoMetric), which "
                "holds the boxes of the validation images: leave the hook out"
            )
        validation = copy.deepcopy(runner.cfg.val_dataloader)
        config = with_pipeline(runner.cfg.train_dataloader.dataset, first_pipeline(validation.dataset))
        dataset = DATASETS.build(copy.deepcopy(config))
        self._evaluator = runner.build_evaluator(copy.deepcopy(runner.cfg.val_evaluator))
        self._evaluator.dataset_meta = dataset.metainfo
        if len(dataset) > self.images:
            dataset = Subset(dataset, sorted(random.Random(0).sample(range(len(dataset)), self.images)))
        validation.dataset = dataset
        self._loader = runner.build_dataloader(validation)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Evaluates, and hands the values to the hooks that log (which come later)."""
        if self._loader is None:  # tools/test.py
            return
        runner.model.eval()
        with torch.no_grad():
            for batch in self._loader:
                self._evaluator.process(data_samples=runner.model.val_step(batch), data_batch=batch)
        for name, value in self._evaluator.evaluate(len(self._loader.dataset)).items():
            runner.message_hub.update_scalar(f"val/train_{name}", value)
