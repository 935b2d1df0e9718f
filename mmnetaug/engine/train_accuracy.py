"""Accuracy on training images, for learning curves such as the paper's figure 4."""

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
    """After every validation, evaluates on training images with the pipeline and metrics of validation.

    The training loss says little about under-fitting, since images are augmented and labels smoothed. The values are
    logged beside those of validation, with the prefix ``train_``, in the log, ``scalars.json`` and TensorBoard.

    Args:
        images: Number of training images, the same ones every time; all of them if there are fewer.
    """

    priority = "VERY_HIGH"  # before an EMAHook of any priority swaps the averaged weights out

    def __init__(self, images: int = 10000) -> None:
        self.images = images
        self._loader: Any = None
        self._evaluator: Evaluator | None = None

    def before_train(self, runner: Runner) -> None:
        """Builds the loader and the evaluator.

        Raises:
            ValueError: The evaluator reads the annotations of the validation images from its own file.
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
        """Evaluates, and adds the values to the log."""
        if self._loader is None:  # tools/test.py
            return
        runner.model.eval()
        with torch.no_grad():
            for batch in self._loader:
                self._evaluator.process(data_samples=runner.model.val_step(batch), data_batch=batch)
        for name, value in self._evaluator.evaluate(len(self._loader.dataset)).items():
            runner.message_hub.update_scalar(f"val/train_{name}", value)
