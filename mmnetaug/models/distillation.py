"""How far the outputs of one network are from those of another that reads the same images: the loss of distillation.

Forward hooks catch outputs of layers after the backbone, whose shape does not depend on its width. So nothing is
written for a model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tensor_mode import dense_heads, flatten_tensors, is_detector

LEAVE_OUT = "remove optim_wrapper.distill or mmnetaug.Distilled from the config"

Outputs = dict[str, tuple[Tensor, ...]]
"""Outputs of one forward pass by name of the hooked module."""


class OutputDivergence:
    """The divergence D of a student's outputs from a teacher's.

    * Classifiers: D = T² · KL(softmax(z' / T) ‖ softmax(z / T)) of the logits, the mean over images (Hinton et al.,
      2015); with a sigmoid loss, the sum over classes of the Bernoulli divergences.
    * Detectors: channel-wise divergence of the neck's outputs (Shu et al., 2021), normalised to zero mean and unit
      variance: T² · KL over the positions of each channel, the mean over images and channels, the sum over levels. To
      this the Bernoulli divergence of the class scores is added, over the sum of the teacher's scores, where the head
      has such scores: mmdet's dense heads with a sigmoid. YOLOv3's and YOLOX's are multiplied by the objectness.

    Args:
        temperature: T, above 0.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(
                f"distill.temperature, or the temperature of mmnetaug.Distilled, must be finite and above 0, got "
                f"{temperature}"
            )
        self.temperature = temperature
        self._caught: Outputs = {}
        self._compare: dict[str, Callable[..., Tensor]] = {}

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Catches the outputs to be compared, inside of a ``with`` block.

        Raises:
            TypeError: The model is neither a classifier with a head nor a detector with a neck or class scores.
        """
        watched = dict(_watched(model))
        if not watched:
            raise TypeError(
                f"distillation compares a classifier's logits, or a detector's neck and class scores, and "
                f"{type(model).__name__} has neither: {LEAVE_OUT}"
            )
        self._caught, self._compare = {}, {name: compare for name, (_, _, compare) in watched.items()}
        with contextlib.ExitStack() as stack:
            for name, (part, select, _) in watched.items():
                stack.callback(part.register_forward_hook(self._catch(name, select)).remove)
            yield

    def _catch(self, name: str, select: Callable[[Any], tuple[Tensor, ...]]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self._caught[name] = select(outputs)

        return hook

    def take(self, detached: bool = False) -> Outputs:
        """The outputs caught since the last call.

        Raises:
            RuntimeError: A part was not called in the forward pass.
        """
        caught, self._caught = self._caught, {}
        if absent := self._compare.keys() - caught.keys():
            raise RuntimeError(
                f"the loss of this model does not call its {' and '.join(sorted(absent))}, so that there are no "
                f"outputs to distill: {LEAVE_OUT}"
            )
        return {name: tuple(t.detach() if detached else t for t in tensors) for name, tensors in caught.items()}

    def between(self, student: Outputs, teacher: Outputs) -> Tensor:
        """D, a scalar.

        Args:
            student: Its outputs, some or all.
            teacher: Its outputs by the same names, of all images or of the first ones.

        Raises:
            TypeError: The outputs hold nothing that can be compared.
        """
        divergences = [
            self._compare[name](own[: len(target)], target, self.temperature)
            for name, outputs in student.items()
            for own, target in zip(outputs, teacher[name], strict=True)
        ]
        if not divergences:
            raise TypeError(
                f"of {' and '.join(self._compare)}, the two networks have no outputs of the same shape that can be "
                f"compared: {LEAVE_OUT}"
            )
        return sum(divergences)


def _watched(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, Callable, Callable[..., Tensor]]]]:
    """Yields, for each module to be compared, its name, itself, the selection of its outputs and the divergence."""
    if is_detector(model):
        if isinstance(getattr(model, "neck", None), nn.Module):
            yield "neck", (model.neck, flatten_tensors, channel_divergence)
        for name in dense_heads(model):
            head = getattr(model, name)
            if select := _class_scores(head):
                yield name, (head, select, score_divergence)
    elif isinstance(getattr(model, "head", None), nn.Module):
        has_sigmoid = any(getattr(module, "use_sigmoid", False) for module in model.head.modules())
        yield "head", (model.head, flatten_tensors, sigmoid_divergence if has_sigmoid else softmax_divergence)


def _class_scores(head: nn.Module) -> Callable[[Any], tuple[Tensor, ...]] | None:
    """How to read the logits of the class scores off a dense head's outputs, one tensor (N, C, H, W) per level.

    None where the head has no such scores.
    """
    if not getattr(getattr(head, "loss_cls", None), "use_sigmoid", False):
        return None
    if hasattr(head, "num_attrib"):  # YOLOv3: (x, y, w, h, objectness, classes) of each anchor

        def select(outputs: Any) -> tuple[Tensor, ...]:
            maps = [scores.unflatten(1, (head.num_base_priors, head.num_attrib)) for scores in outputs[0]]
            return tuple(_times_objectness(scores[:, :, 5:], scores[:, :, 4:5]).flatten(1, 2) for scores in maps)
    elif hasattr(head, "multi_level_conv_obj"):  # YOLOX: classes, boxes, objectness

        def select(outputs: Any) -> tuple[Tensor, ...]:
            return tuple(map(_times_objectness, outputs[0], outputs[2]))
    elif hasattr(head, "cls_out_channels"):  # by convention the first output
        priors = getattr(head, "num_base_priors", 1)
        channels = head.cls_out_channels * (priors if isinstance(priors, int) else 1)

        def select(outputs: Any) -> tuple[Tensor, ...]:
            maps = outputs[0] if isinstance(outputs[0], list | tuple) else ()  # a transformer's are one tensor
            return tuple(maps) if all(scores.dim() == 4 and scores.shape[1] == channels for scores in maps) else ()
    else:
        return None
    return select


def _times_objectness(classes: Tensor, objectness: Tensor) -> Tensor:
    """The logit of σ(class) · σ(objectness), the score at inference. Class logits of background are untrained."""
    product = F.logsigmoid(_exact(classes)) + F.logsigmoid(_exact(objectness))
    return product - torch.log(-torch.expm1(product.clamp(max=-1e-6)))


def softmax_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL of softmax distributions, from logits (N, classes); the mean over N."""
    student, teacher = (F.log_softmax(_exact(logits) / temperature, 1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def sigmoid_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL of Bernoulli distributions, from logits (N, classes): the sum over classes, the mean over N."""
    return temperature**2 * _bernoulli(student, teacher, temperature).sum() / len(student)


def score_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL of Bernoulli distributions, from score maps (N, C, H, W): the sum, over that of the teacher's scores."""
    scores = _exact(teacher).sigmoid().sum().clamp(min=1)
    return temperature**2 * _bernoulli(student, teacher, temperature).sum() / scores


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL over the positions of each channel of normalised features (N, C, H, W); the mean over N and C."""
    count = student.shape[0] * student.shape[1]
    student, teacher = (
        F.log_softmax(F.batch_norm(_exact(features), None, None, training=True).flatten(2) / temperature, 2)
        for features in (student, teacher)
    )
    return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True) / count


def _bernoulli(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergences of Bernoulli distributions, element by element, from logits."""
    student, teacher = _exact(student) / temperature, _exact(teacher) / temperature
    target = teacher.sigmoid()
    return target * (F.logsigmoid(teacher) - F.logsigmoid(student)) + (1 - target) * (
        F.logsigmoid(-teacher) - F.logsigmoid(-student)
    )


def _exact(values: Tensor) -> Tensor:
    """Casts to float32 or more, since lower precision loses small probabilities."""
    return values if values.dtype == torch.float64 else values.float()
