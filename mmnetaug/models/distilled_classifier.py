"""Knowledge distillation of classifiers (Hinton et al., 2015; the paper's table 2), with any mmpretrain teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmnetaug.checkpoint import pretrained
from mmnetaug.config import with_preprocessor
from mmnetaug.registry import MODELS


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """mmpretrain's ``ImageClassifier`` that also learns from a teacher's predictions.

    The loss is that of the head plus ``weight · T² · KL(softmax(teacher / T) ‖ softmax(student / T))``.

    The teacher is not a submodule: it is in no state dict, optimizer, EMA copy or gradient synchronisation, is frozen
    and always in evaluation mode. Checkpoints are those of an ``ImageClassifier``, and load strictly into one. The
    teacher's predictions are cached for the second of two passes on the same batch, as in a NetAug step.

    Args:
        teacher: Config of the teacher, or the name of a config file: a path, or ``'mmpretrain::...'``. It reads the
            student's images at the student's size, normalised by its own mean and standard deviation.
        teacher_checkpoint: Its weights, unless the teacher's config has an ``init_cfg``.
        temperature: Temperature of the softmax. The paper states neither temperature nor weight; the authors' other
            training code (Once-for-All) uses 1 for both.
        weight: Weight of the distillation loss.
        args: See ``mmpretrain.ImageClassifier``.
        kwargs: See ``mmpretrain.ImageClassifier``.

    Raises:
        ValueError: The teacher has another number of classes, or there is no such config.
    """

    def __init__(
        self,
        *args: Any,
        teacher: dict | str,
        teacher_checkpoint: str | None = None,
        temperature: float = 1.0,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.temperature, self.weight = temperature, weight
        teacher = _build_teacher(teacher, teacher_checkpoint)
        classes, own = (getattr(getattr(model, "head", None), "num_classes", None) for model in (teacher, self))
        if classes != own:
            raise ValueError(
                f"the teacher has {classes} classes and the student {own}: a teacher must have been trained on "
                "the student's classes, in the same order"
            )
        self._teacher = (teacher,)  # in a tuple, so that nn.Module does not register it
        self._seen: tuple[Tensor, Tensor] | None = None  # the last batch, copied, and the teacher's scores

    @property
    def teacher(self) -> nn.Module:
        """The teacher, frozen and in evaluation mode."""
        return self._teacher[0]

    def init_weights(self) -> None:
        """Initialises the student, and loads the teacher's weights.

        Raises:
            ValueError: The teacher has no weights to load.
        """
        super().init_weights()
        if not any(any(pretrained(module)) for module in (self.teacher, self.teacher.backbone)):
            raise ValueError("the teacher has no weights: set teacher_checkpoint")
        with torch.random.fork_rng(devices=[]):  # also draws weights, which the checkpoint replaces
            self.teacher.init_weights()
        self._seen = None

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Losses of the head and of the distillation.

        Args:
            inputs: Preprocessed images (N, 3, H, W).
            data_samples: One per image, with its label.

        Returns:
            The head's losses, its ``loss`` as ``loss_cls``, and ``loss_kd``.
        """
        scores = self.head(self.extract_feat(inputs))
        losses = dict(self.head._get_loss(scores, data_samples))
        if "loss" in losses:  # MMEngine's name for the total in the log
            losses["loss_cls"] = losses.pop("loss")
        student = F.log_softmax(scores / self.temperature, 1)
        teacher = F.log_softmax(self._ask_teacher(inputs) / self.temperature, 1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        losses["loss_kd"] = self.weight * self.temperature**2 * divergence
        return losses

    @torch.no_grad()
    def _ask_teacher(self, inputs: Tensor) -> Tensor:
        """The teacher's scores (N, classes); those of the last batch are cached.

        Batches are compared by value, since a loader may reuse memory for new images.
        """
        if self._seen is None or not torch.equal(self._seen[0], inputs):
            self._seen = inputs.clone(), self.teacher(self._as_teacher_reads(inputs))
        return self._seen[1]

    def _as_teacher_reads(self, inputs: Tensor) -> Tensor:
        own, theirs = self.data_preprocessor, self.teacher.data_preprocessor
        if getattr(theirs, "mean", None) is None:  # it reads the student's images
            return inputs
        images = inputs if getattr(own, "mean", None) is None else inputs * own.std + own.mean
        if own.to_rgb != theirs.to_rgb:
            images = images.flip(1)
        return (images - theirs.mean) / theirs.std

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistilledClassifier:
        self.teacher._apply(fn)  # to the student's device
        self._seen = None
        return super()._apply(fn, recurse)


def _build_teacher(config: dict | str, checkpoint: str | None) -> nn.Module:
    if isinstance(config, str):
        try:
            cfg = get_config(config) if "::" in config else Config.fromfile(config)
        except OSError as error:
            raise ValueError(f"the teacher's config cannot be read: {error}") from error
        if not cfg.get("model"):
            raise ValueError(f"the teacher's config {config} has no model")
        config = with_preprocessor(cfg.model, cfg.get("data_preprocessor"))
    config = dict(config)
    if checkpoint is not None:
        config["init_cfg"] = dict(type="Pretrained", checkpoint=checkpoint)
    # the student starts as it would without a teacher
    with DefaultScope.overwrite_default_scope("mmpretrain"), torch.random.fork_rng(devices=[]):
        return MMPRETRAIN_MODELS.build(config).eval().requires_grad_(False)
