"""Knowledge distillation from a trained network, of classifiers and detectors (Hinton et al., 2015; paper, table 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmdet.models import SemiBaseDetector
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmnetaug.checkpoint import pretrained
from mmnetaug.config import iter_heads, type_name, with_preprocessor, without_netaug
from mmnetaug.registry import MODELS

from .distillation import OutputDivergence, Outputs
from .tensor_mode import tensor_forward


@MODELS.register_module()
def Distilled(
    model: dict[str, Any],
    teacher: dict[str, Any] | str,
    teacher_checkpoint: str | None = None,
    temperature: float = 1.0,
    weight: float = 1.0,
    data_preprocessor: dict[str, Any] | None = None,
) -> nn.Module:
    """Builds a model that also learns from the outputs of a teacher, a trained network of the same task.

    ``weight`` · D is added to the model's losses as ``loss_kd``, where D is :class:`OutputDivergence`: of the logits of
    classifiers, and of the neck's outputs and the class scores of detectors. Outputs whose shapes differ, such as those
    of a wider neck, are not compared.

    The teacher is not a submodule: it is in no state dict, optimizer or gradient synchronisation, is frozen and always
    in evaluation mode. Checkpoints are those of the plain model, and load strictly into it. The teacher's
    outputs are cached for the second of two passes on the same batch, as in a NetAug step.

    Args:
        model: Config of the student, a classifier or a detector. With NetAug:
            ``dict(type='mmnetaug.NetAug', model=dict(type='mmnetaug.Distilled', model=...))``.
        teacher: Config of the teacher, or the name of a config file: a path, or ``'mmpretrain::...'`` and
            ``'mmdet::...'``. It reads the student's images at the student's size, normalised as its own data
            preprocessor does, if its config has one. NetAug and a teacher's own teacher are left out.
        teacher_checkpoint: Its weights, unless the teacher's config has an ``init_cfg``.
        temperature: T of D. The paper states neither temperature nor weight; the authors' other training code
            (Once-for-All) uses 1 for both.
        weight: Weight of D.
        data_preprocessor: Set by MMEngine's Runner; passed to the student.

    Raises:
        ValueError: The teacher has another number of classes, or there is no such config; or the student is elastic
            already, or a semi-supervised detector.
    """
    if type_name(model) == "NetAug":
        raise ValueError("put NetAug around Distilled, not into it: NetAug(model=Distilled(model=...))")
    student = ROOT_MODELS.build(with_preprocessor(model, data_preprocessor))
    if isinstance(student, SemiBaseDetector):
        raise ValueError(f"{type(student).__name__} has a teacher already")
    config, scope = _teacher_config(teacher)
    student_classes, teacher_classes = ({head["num_classes"] for head in iter_heads(of)} for of in (model, config))
    if student_classes and teacher_classes and student_classes != teacher_classes:
        numbers = [", ".join(map(str, sorted(classes))) for classes in (teacher_classes, student_classes)]
        raise ValueError(
            f"the teacher has {numbers[0]} classes and the student {numbers[1]}: a teacher must have been trained on "
            "the student's classes, in the same order"
        )
    if teacher_checkpoint is not None:
        config["init_cfg"] = dict(type="Pretrained", checkpoint=teacher_checkpoint)
    # the student starts as it would without a teacher
    with DefaultScope.overwrite_default_scope(scope), torch.random.fork_rng(devices=[]):
        teacher_model = ROOT_MODELS.build(config).eval().requires_grad_(False)
    student.__class__ = type(f"Distilled{type(student).__name__}", (DistillationMixin, type(student)), {})
    student.set_teacher(teacher_model, "data_preprocessor" in config, OutputDivergence(temperature), weight)
    return student


class DistillationMixin(nn.Module):
    """What :func:`Distilled` adds to a model's class; it comes before that."""

    def set_teacher(self, teacher: nn.Module, renormalizes: bool, divergence: OutputDivergence, weight: float) -> None:
        """Sets the teacher, whether it reads images normalised by its own data preprocessor, and the loss."""
        self._teacher = (teacher,)  # in a tuple, so that nn.Module does not register it
        self._renormalizes, self._divergence, self._kd_weight = renormalizes, divergence, weight
        self._seen: tuple[Tensor, Outputs] | None = None  # the last batch, copied, and the teacher's outputs

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
        if not any(pretrained(self.teacher)):
            raise ValueError("the teacher has no weights: set teacher_checkpoint")
        with torch.random.fork_rng(devices=[]):  # also draws weights, which the checkpoint replaces
            self.teacher.init_weights()
        self._seen = None

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Any]:
        """The model's own losses and ``loss_kd``.

        Args:
            inputs: Preprocessed images (N, 3, H, W).
            data_samples: One per image, with its annotations.

        Raises:
            TypeError: None of the two networks' outputs have the same shape.
        """
        with self._divergence.watching(self):
            losses = dict(super().loss(inputs, data_samples))
        if "loss" in losses:  # MMEngine's name for the total in the log
            losses["loss_cls"] = losses.pop("loss")
        student, teacher = self._divergence.take(), self._teacher_outputs(inputs)
        shapes = [{n: [one.shape for one in outputs] for n, outputs in of.items()} for of in (student, teacher)]
        comparable = {n: outputs for n, outputs in student.items() if shapes[0][n] == shapes[1].get(n)}
        losses["loss_kd"] = self._kd_weight * self._divergence.between(comparable, teacher)
        return losses

    @torch.no_grad()
    def _teacher_outputs(self, inputs: Tensor) -> Outputs:
        """The teacher's outputs; those of the last batch are cached.

        Batches are compared by value, since a loader may reuse memory for new images.
        """
        if self._seen is None or not torch.equal(self._seen[0], inputs):
            divergence = OutputDivergence()
            with divergence.watching(self.teacher):
                tensor_forward(self.teacher, self._renormalize(inputs))
            self._seen = inputs.clone(), divergence.take()
        return self._seen[1]

    def _renormalize(self, inputs: Tensor) -> Tensor:
        """The images as the teacher's data preprocessor would have normalised them."""
        if not self._renormalizes:
            return inputs
        own, theirs = self.data_preprocessor, self.teacher.data_preprocessor
        images = inputs if getattr(own, "mean", None) is None else inputs * own.std + own.mean
        if _flips_channels(own) != _flips_channels(theirs):
            images = images.flip(1)
        return images if getattr(theirs, "mean", None) is None else (images - theirs.mean) / theirs.std

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistillationMixin:
        self.teacher._apply(fn)  # to the student's device
        self._seen = None
        return super()._apply(fn, recurse)


def _teacher_config(config: dict | str) -> tuple[dict, str | None]:
    """The teacher's model config, plain, and the scope of its names, by default the run's."""
    if not isinstance(config, str):
        return dict(without_netaug(config)), None
    try:
        cfg = get_config(config) if "::" in config else Config.fromfile(config)
    except OSError as error:
        raise ValueError(f"the teacher's config cannot be read: {error}") from error
    if not cfg.get("model"):
        raise ValueError(f"the teacher's config {config} has no model")
    return with_preprocessor(without_netaug(cfg.model), cfg.get("data_preprocessor")), cfg.get("default_scope")


def _flips_channels(preprocessor: nn.Module) -> bool:
    """Whether mmpretrain's or mmdet's preprocessor turns BGR into RGB."""
    return getattr(preprocessor, "to_rgb", getattr(preprocessor, "_channel_conversion", False))
