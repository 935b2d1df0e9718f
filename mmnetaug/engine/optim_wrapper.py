"""The NetAug step: an optimizer wrapper that adds an augmented pass to every training step.

One step on images x with annotations y, weights W and a learning rate lr (paper section 3.2, equation 3):

    draw widths w from the seed and the iteration   # the same on all ranks and after a resume
    z' ← network of widths w on x                   # augmented pass
    g' ← gradient of α · L(z', y)                   # none if the loss is not finite
    z ← tiny network on x                           # base pass
    g ← gradient of (1 − λ) · L(z, y) + λ · D(z, z')   # λ = 0 without distillation; z' is detached
    W ← W − lr · (g + g')                           # or what another optimizer makes of the sum

The augmented pass runs in a forward pre-hook of the model, just before the base pass, so that its outputs can be
distilled. Only one of the two autograd graphs is in memory at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.dist import get_rank, is_distributed
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmnetaug.elastic import ElasticSpace, find_spaces, tiny_gradients_in_place, tiny_statistics_kept
from mmnetaug.models.distillation import OutputDivergence, Outputs
from mmnetaug.models.tensor_mode import flatten_tensors
from mmnetaug.registry import OPTIM_WRAPPERS

from .augmented_pass import (
    copied_annotations,
    finite_on_all_ranks,
    first_images,
    own_randomness,
    unsynchronised,
    unwrapped,
)

MAX_SKIPPED_IN_A_ROW = 50
"""Training stops after this many consecutive augmented passes with a loss or gradient that is not finite."""


@dataclasses.dataclass
class _AugmentedPass:
    """The result of an iteration's augmented pass.

    Attributes:
        skipped: Whether its loss was not finite, so that it left no gradient.
        outputs: Its detached outputs, the targets of distillation; None without distillation.
    """

    skipped: bool
    outputs: Outputs | None = None


@OPTIM_WRAPPERS.register_module()
class NetAugOptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper`` with NetAug's augmented pass.

    An augmented pass whose loss is not finite is skipped. A finite loss whose gradient is not finite is caught only
    where the two gradients are kept apart (``clip_grad`` without ``clip_together``, or ``surgery``). Elsewhere both
    passes add to one gradient, which then spoils the weights, as it would in plain training.

    Args:
        alpha: Weight of the augmented loss (α of equation 3); 0 disables the augmented pass.
        seed: Seed of the sampled widths, which depend on it and on the iteration number alone.
        clip_together: Clip the sum of both gradients, so that a large augmented gradient shrinks the tiny network's
            step. By default the two gradients are clipped separately: the tiny network's own gradient is clipped
            exactly as in plain training.
        interval: Run the augmented pass in every ``interval``-th optimizer step (1 in the paper). Larger values make
            training cheaper and the augmentation weaker.
        share: Fraction of the batch, counted from its start, that the augmented pass sees (1 in the paper).
        distill: ``dict(weight=0.5, temperature=1.0)`` has the tiny network also learn from the augmented network's
            outputs, as in slimmable networks (Yu & Huang, 2019) and NetDistiller (Zhang et al., 2023): λ (above 0, at
            most 1) and T of :class:`~mmnetaug.models.distillation.OutputDivergence`. None: none, as in the paper.
        normalize: Divide the sum of both gradients by 1 + α, so that SGD's steps are as long as in plain training.
        surgery: Remove the component of the augmented gradient that opposes the base gradient (PCGrad, Yu et al.,
            2020): ``"tensor"`` for each parameter separately, ``"all"`` for all parameters as one vector.

    Attributes:
        width: Whether width factors are currently sampled (set by ``NetAugScheduleHook``).
        expand: Whether expand factors are currently sampled. If neither is, no augmented pass runs.
    """

    # of MMEngine's wrapper, which is assigned here, too
    clip_grad_kwargs: dict[str, Any] | None
    _inner_count: int
    loss_scaler: torch.amp.GradScaler | None = None  # of mixed precision

    def __init__(
        self,
        *args: Any,
        alpha: float = 1.0,
        seed: int = 0,
        clip_together: bool = False,
        interval: int = 1,
        share: float = 1.0,
        distill: dict[str, Any] | None = None,
        normalize: bool = False,
        surgery: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha must be finite and at least 0, got {alpha}")
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        if surgery not in (None, "tensor", "all"):
            raise ValueError(f"surgery must be 'tensor', 'all' or None, got {surgery!r}")
        if distill is not None and alpha == 0:
            raise ValueError("distill needs augmented networks that are trained: set alpha above 0")
        self.alpha, self.seed, self.clip_together = alpha, seed, clip_together
        self.interval, self.share = interval, share
        self.distillation: OutputDivergence | None = None
        if distill is not None:
            settings = {"weight": 0.5, **distill}
            self.distill_weight = settings.pop("weight")
            if not 0 < self.distill_weight <= 1:
                raise ValueError(f"distill.weight must be above 0 and at most 1, got {self.distill_weight}")
            self.distillation = OutputDivergence(**settings)
        self.normalize, self.surgery = normalize, surgery
        self._share_of_sum = 1 / (1 + alpha) if normalize else 1.0  # of each gradient
        self.width = self.expand = True
        self._model: nn.Module | None = None
        self._spaces: list[ElasticSpace] = []
        self._sampled = {"width", "expand"}  # roles with more than one factor; both until the model is known
        self._counting: list[nn.Module] = []  # modules with buffers, mostly norms
        self._augmented: _AugmentedPass | None = None  # of this iteration
        self._skipped_in_a_row = 0
        self._other_gradients: list[Tensor | None] | None = None

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context of the base forward pass; runs the augmented pass when that begins.

        Raises:
            RuntimeError: If nothing in the model is elastic, the model is compiled, or the gradients of the two passes
                cannot be separated.
        """
        self._attach(model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(super().optim_context(model))
            if self._augments():
                if self.distillation is not None:
                    stack.enter_context(self.distillation.watching(unwrapped(model)))

                def run_once(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
                    hook.remove()  # the augmented pass calls the model too
                    self._augmented = self._augmented_pass(args, kwargs)

                hook = model.register_forward_pre_hook(run_once, with_kwargs=True)
                stack.callback(hook.remove)
                if not is_distributed():  # DDP's hooks must see all gradients
                    stack.enter_context(tiny_gradients_in_place())
            yield

    def update_params(self, loss: Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None) -> None:
        """Backward pass of the base loss, and the optimizer step if it is due.

        Args:
            loss: The base loss, a scalar.
            step_kwargs: Arguments of the optimizer's ``step``.
            zero_kwargs: Arguments of the optimizer's ``zero_grad``.
        """
        if self._augments():
            augmented, self._augmented = self._augmented, None
            if augmented is None:
                raise RuntimeError("the model's forward was not called in optim_context: there is nothing to augment")
            if augmented.outputs is not None:
                divergence = self.distillation.between(self.distillation.take(), augmented.outputs)
                loss = (1 - self.distill_weight) * loss + self.distill_weight * divergence
                self.message_hub.update_scalar("train/loss_distill", divergence.item())
            if not augmented.skipped and not self._keeps_apart():
                loss = loss * self._share_of_sum
        super().update_params(loss, step_kwargs, zero_kwargs)

    def step(self, **kwargs: Any) -> None:
        """Optimizer step on the sum of both gradients."""
        if self._other_gradients is None:
            super().step(**kwargs)
            return
        settings = self.clip_grad_kwargs
        try:
            self._combine()
            if self._clips_apart():
                self.clip_grad_kwargs = None
            super().step(**kwargs)
        finally:
            self.clip_grad_kwargs = settings
            self._other_gradients = None

    @torch.compiler.disable  # compiled code cannot tell that it is compiled
    def _attach(self, model: nn.Module) -> None:
        if model is self._model:
            return
        # A frozen copy, such as the teacher of a semi-supervised detector, stays at base widths.
        self._spaces = find_spaces(model, trained_only=True)
        if not self._spaces:
            raise RuntimeError(
                f"{type(self).__name__} trains elastic models, and nothing in {type(unwrapped(model)).__name__} is: "
                "wrap its config in dict(type='mmnetaug.NetAug', model=...), or use MMEngine's optimizer wrapper."
            )
        if hasattr(getattr(model, "train_step", None), "_torchdynamo_orig_callable"):
            raise RuntimeError(
                "torch.compile would recompile for every sampled network: leave compile out of the config"
            )
        if self._keeps_apart() and getattr(model, "gradient_as_bucket_view", False):
            raise RuntimeError(
                "gradient_as_bucket_view lets the second pass overwrite the first one's gradients, which are kept "
                "apart to be clipped one by one or compared: leave it out of model_wrapper_cfg, or set "
                "optim_wrapper.clip_together=True and no surgery"
            )
        groups = [group for space in self._spaces for group in space.groups]
        self._sampled = {group.role for group in groups if len(set(group.factors)) > 1 and not group.held_reason}
        for space in self._spaces:
            space.driven = True
        self._counting = [module for module in model.modules() if module._buffers]
        self._model = model

    def _augments(self) -> bool:
        widens = (self.width and "width" in self._sampled) or (self.expand and "expand" in self._sampled)
        # The same for all iterations accumulated into a step: with clipping, the last one synchronises for all of them.
        due = self._inner_count // self._accumulative_counts % self.interval == 0
        return self.alpha > 0 and widens and due

    def _clips_apart(self) -> bool:
        return bool(self.clip_grad_kwargs) and not self.clip_together

    def _keeps_apart(self) -> bool:
        """Whether the two gradients are accumulated separately and added in the optimizer step."""
        return self._clips_apart() or self.surgery is not None

    def _widths(self, space: ElasticSpace, iteration: int) -> list[int]:
        """Widths of this iteration's augmented network."""
        return space.sample(self.seed, iteration, self.width, self.expand)

    def _augmented_pass(self, args: tuple, kwargs: dict[str, Any]) -> _AugmentedPass:
        """Forward and backward of the network sampled for this iteration, on the inputs of the base pass."""
        model, iteration = self._model, self._inner_count
        tensors = [(tensor, tensor._version) for tensor in flatten_tensors((args, kwargs))]
        if self.share < 1:
            args, kwargs = first_images(unwrapped(model), args, kwargs, self.share)
        args, kwargs = tuple(map(copied_annotations, args)), {k: copied_annotations(v) for k, v in kwargs.items()}
        outputs = None
        with contextlib.ExitStack() as stack:
            for space in self._spaces:
                stack.enter_context(space.at(self._widths(space, iteration)))
            stack.enter_context(tiny_statistics_kept(self._counting))
            stack.enter_context(own_randomness(f"{self.seed}:{iteration}:{get_rank()}", self._parameters()[0].device))
            if self._keeps_apart():
                self._swap_gradients()
                stack.callback(self._swap_gradients)
            else:
                stack.enter_context(unsynchronised(model))  # the base pass synchronises the sum
            with super().optim_context(model):
                losses = model(*args, **kwargs)
            loss, _ = unwrapped(model).parse_losses(losses)
            if self.distillation is not None:
                outputs = self.distillation.take(detached=True)
            if any(tensor._version != version for tensor, version in tensors):
                raise RuntimeError(
                    "the model's forward changes its images in place, so that the two passes would see different "
                    "ones: have it work on a copy (inputs = inputs.clone())"
                )
            if not finite_on_all_ranks(loss):
                self._count_skipped()
                return _AugmentedPass(skipped=True)
            weight = self.alpha if self._keeps_apart() else self.alpha * self._share_of_sum
            # Inside of the contexts, since activation checkpointing recomputes at the sampled widths.
            with torch.autocast(loss.device.type, enabled=False):
                self.backward(self.scale_loss(weight * loss))
        torch.clear_autocast_cache()  # the base pass needs casts of the weights in its own graph
        self._inner_count = iteration  # two backward passes, but one step
        if not self._keeps_apart():
            self._skipped_in_a_row = 0
        self.message_hub.update_scalar("train/loss_aug", loss.item())
        return _AugmentedPass(skipped=False, outputs=outputs)

    def _count_skipped(self) -> None:
        """Counts an augmented pass without a finite gradient.

        Raises:
            RuntimeError: If too many of them follow each other.
        """
        name = "train/netaug/skipped"
        known = self.message_hub.log_scalars
        self.message_hub.update_scalar(name, 1 + (known[name].current() if name in known else 0))
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(
                f"the augmented networks' loss or gradient was not finite in {self._skipped_in_a_row} steps in a row: "
                "lower the learning rate or the factors of NetAug (width, expand), or clip gradients "
                "(optim_wrapper.clip_grad)"
            )

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _swap_gradients(self) -> None:
        """Exchanges base and augmented gradients, which accumulate separately."""
        parameters = self._parameters()
        others = self._other_gradients or [None] * len(parameters)
        self._other_gradients = [parameter.grad for parameter in parameters]
        for parameter, gradient in zip(parameters, others, strict=True):
            parameter.grad = gradient

    def _combine(self) -> None:
        """Adds the augmented gradients to the base ones, after clipping and surgery.

        Augmented gradients that are not finite are dropped; in float16 the loss scaler skips the whole step.
        """
        parameters = self._parameters()
        norm = self._clip_each(self.clip_grad_kwargs) if self._clips_apart() else None
        augmented = [gradient for gradient in self._other_gradients if gradient is not None]
        if not augmented:
            return
        if not self._scales_losses():
            norm = torch.nn.utils.get_total_norm(augmented) if norm is None else norm
            if not norm.isfinite():
                self._count_skipped()
                return
        self._skipped_in_a_row = 0
        if self.surgery is not None:
            pairs = zip((parameter.grad for parameter in parameters), self._other_gradients, strict=True)
            remove_conflict([pair for pair in pairs if None not in pair], per_tensor=self.surgery == "tensor")
        for parameter, other in zip(parameters, self._other_gradients, strict=True):
            if other is not None:
                parameter.grad = other if parameter.grad is None else parameter.grad.add_(other)
            if self.normalize and parameter.grad is not None:
                parameter.grad.mul_(self._share_of_sum)

    def _scales_losses(self) -> bool:
        """Whether a loss scaler is active, as in float16; it skips steps whose gradients are not finite."""
        return self.loss_scaler is not None and self.loss_scaler.is_enabled()

    def _clip_each(self, settings: dict[str, Any]) -> Tensor | None:
        """Clips the gradients of the two passes separately and logs their norms.

        Returns:
            The norm of the augmented gradient before clipping; None when clipping by value.
        """
        scale = 1.0 if self.loss_scaler is None else self.loss_scaler.get_scale()
        settings = {
            key: value * scale if key in ("max_norm", "clip_value") else value for key, value in settings.items()
        }
        parameters = self._parameters()
        gradients = [g for g in (*(p.grad for p in parameters), *self._other_gradients) if g is not None]
        finite = not self._scales_losses() or "clip_value" not in settings or all(g.isfinite().all() for g in gradients)
        if not finite:
            settings["clip_value"] = math.inf  # clipped infinities are finite: the scaler would not skip the step
        for name in ("", "_aug"):
            with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
            norm = self.clip_func(with_gradient, **settings) if with_gradient else None
            if norm is not None:
                self.message_hub.update_scalar(f"train/{self.grad_name}{name}", float(norm) / scale)
            self._swap_gradients()
        return norm


def remove_conflict(pairs: Sequence[tuple[Tensor, Tensor]], per_tensor: bool) -> None:
    """Projects gradients that oppose others onto the normal plane of those, in place (PCGrad, Yu et al., 2020).

    Args:
        pairs: Pairs of equal shape: a gradient that stays, and the one that is projected.
        per_tensor: Whether to treat each pair separately, or all of them as one pair of vectors.
    """
    products = torch.stack([torch.sum(base * other) for base, other in pairs])
    squares = torch.stack([torch.sum(base * base) for base, _ in pairs])
    if not per_tensor:
        products, squares = products.sum().expand_as(products), squares.sum().expand_as(squares)
    tiny = torch.finfo(squares.dtype).tiny
    factors = products.clamp(max=0) / squares.clamp(min=tiny)
    for (base, other), factor in zip(pairs, factors, strict=True):
        other.sub_(factor * base)
