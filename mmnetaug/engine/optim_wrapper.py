"""The NetAug step: an optimizer wrapper that adds one augmented pass to every base pass.

One step (paper section 3.2, equation 3): forward and backward of the tiny network, then forward and backward of one
sampled augmented network on the same batch, then one optimizer step on the sum of both gradients. The graphs of the two
passes are never alive together.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..elastic import Elastic, ElasticSpace, find_spaces
from ..registry import OPTIM_WRAPPERS
from .lean import make_lean


class _NetAugStep:
    """What both wrappers share; stands before MMEngine's wrapper in the method resolution order.

    Args:
        alpha: Weight of the augmented loss (α of equation 3).
        seed: Seed of the sampled widths; with the iteration number it determines them.
        clip_together: Clip the sum of both gradients, so that a large augmented gradient shrinks the tiny network's
            step. By default each pass is clipped by itself: the tiny network's own gradient is clipped exactly as in
            plain training.
        interval: Steps of the optimizer from one augmented step to the next (1 in the paper). More makes training
            cheaper, and weaker: the steps between are plain.
        share: Share of the batch, its first images, that the augmented pass sees (1 in the paper).

    Attributes:
        width: Whether width factors are sampled at present (set by ``NetAugScheduleHook``).
        expand: Whether expand factors are. Where nothing is left to sample, no augmented pass is run.
    """

    def __init__(
        self,
        *args: Any,
        alpha: float = 1.0,
        seed: int = 0,
        clip_together: bool = False,
        interval: int = 1,
        share: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if interval < 1:
            raise ValueError(f"interval is a number of steps, 1 or more, got {interval}")
        if not 0 < share <= 1:
            raise ValueError(f"share is a share of the batch, above 0 and at most 1, got {share}")
        self.alpha, self.seed, self.clip_together = alpha, seed, clip_together
        self.interval, self.share = interval, share
        self.width = self.expand = True
        self._model: nn.Module | None = None
        self._spaces: list[ElasticSpace] = []
        self._sampled = {"width", "expand"}  # roles with factors to choose from; both until the model is known
        self._counting: list[nn.Module] = []  # modules with buffers: norms, above all
        self._inputs: tuple[tuple, dict] | None = None
        self._versions: list[tuple[Tensor, int]] = []  # of the inputs, which every change in place counts up
        self._other_gradients: list[Tensor | None] | None = None

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context of the base forward pass: remembers its inputs for the augmented pass.

        Raises:
            RuntimeError: If nothing in the model is elastic, its step is compiled, or the gradients of both passes
                cannot be kept apart.
        """
        self._attach(model)
        if not self._augments():
            with super().optim_context(model):
                yield
            return
        # The augmented pass synchronises the sum of both gradients, unless they are clipped one by one.
        synchronised_later = hasattr(model, "no_sync") and not self._clips_apart()
        remember = model.register_forward_pre_hook(self._remember, with_kwargs=True)
        try:
            with model.no_sync() if synchronised_later else contextlib.nullcontext(), super().optim_context(model):
                yield
        finally:
            remember.remove()

    def update_params(self, loss: Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None) -> None:
        """Backward of the base loss, the augmented pass, and the optimizer step when one is due.

        Args:
            loss: The base loss, a scalar.
            step_kwargs: Arguments of the optimizer's ``step``.
            zero_kwargs: Arguments of the optimizer's ``zero_grad``.
        """
        if not self._augments():
            super().update_params(loss, step_kwargs, zero_kwargs)
            return
        count = self._inner_count  # a step counts once, though it runs two backward passes
        self.backward(self.scale_loss(loss))
        self._inner_count = count
        if self._clips_apart():
            self._swap_gradients()
        self._augmented_pass()
        if self._clips_apart():
            self._swap_gradients()
        if self.should_update():
            self.step(**(step_kwargs or {}))
            self.zero_grad(**(zero_kwargs or {}))

    def step(self, **kwargs: Any) -> None:
        """Optimizer step on the sum of both gradients."""
        if self._other_gradients is None:
            super().step(**kwargs)
            return
        settings, self.clip_grad_kwargs = self.clip_grad_kwargs, None
        try:
            self._clip_each_and_add(settings)
            super().step(**kwargs)
        finally:
            self.clip_grad_kwargs = settings
            self._other_gradients = None

    @torch.compiler.disable  # compiled, it would not see that it is
    def _attach(self, model: nn.Module) -> None:
        if model is self._model:
            return
        self._spaces = find_spaces(model)
        if not self._spaces:
            raise RuntimeError(
                f"{type(self).__name__} trains elastic models, and nothing in {type(unwrapped(model)).__name__} is: "
                "wrap its config in dict(type='mmnetaug.NetAug', model=...), or use MMEngine's optimizer wrapper."
            )
        if hasattr(getattr(model, "train_step", None), "_torchdynamo_orig_callable"):
            raise RuntimeError(
                "torch.compile would compile every sampled network anew: leave compile out of the config"
            )
        if self._clips_apart() and getattr(model, "gradient_as_bucket_view", False):
            raise RuntimeError(
                "gradient_as_bucket_view lets the second pass overwrite the first one's gradients, which are clipped "
                "one by one: leave it out of model_wrapper_cfg, or set optim_wrapper.clip_together=True"
            )
        groups = [group for space in self._spaces for group in space.groups]
        self._sampled = {group.role for group in groups if len(set(group.choices())) > 1}
        for space in self._spaces:
            space.driven = True
        make_lean(model)
        self._counting = [module for module in model.modules() if module._buffers]
        self._model = model

    def _augments(self) -> bool:
        widens = (self.width and "width" in self._sampled) or (self.expand and "expand" in self._sampled)
        # All iterations whose gradients one step gathers are alike: with clipping, the last one synchronises for all.
        return widens and self._inner_count // self._accumulative_counts % self.interval == 0

    def _clips_apart(self) -> bool:
        return bool(self.clip_grad_kwargs) and not self.clip_together

    def _remember(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.share < 1:
            args, kwargs = _first_images(args, kwargs, self.share)
        self._inputs = tuple(map(_kept, args)), {key: _kept(value) for key, value in kwargs.items()}
        self._versions = [(leaf, leaf._version) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]

    def _augmented_pass(self) -> None:
        """Forward and backward of the network sampled for this iteration, on the inputs of the base pass."""
        if self._inputs is None:
            raise RuntimeError("the model's forward was not called in optim_context: there is nothing to augment")
        if any(tensor._version != version for tensor, version in self._versions):
            raise RuntimeError(
                "the model's forward changes its images in place, so that the augmented pass would see others: have it "
                "work on a copy (inputs = inputs.clone())"
            )
        (args, kwargs), self._inputs = self._inputs, None
        model, iteration = self._model, self._inner_count
        with contextlib.ExitStack() as stack:
            for space in self._spaces:
                stack.enter_context(space.at(space.sample(self.seed, iteration, self.width, self.expand)))
            stack.enter_context(_tiny_statistics_kept(self._counting))
            stack.enter_context(_own_randomness(f"{self.seed}:{iteration}:{get_rank()}"))
            with super().optim_context(model):
                losses = model(*args, **kwargs)
            loss, _ = unwrapped(model).parse_losses(losses)
            # Backward inside of the context: activation checkpointing recomputes at the sampled widths.
            self.backward(self.scale_loss(self.alpha * loss))
        self.message_hub.update_scalar("train/loss_aug", loss.item())

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _swap_gradients(self) -> None:
        """Exchanges the base gradients and the augmented ones, which gather apart over accumulated iterations."""
        parameters = self._parameters()
        others = self._other_gradients or [None] * len(parameters)
        self._other_gradients = [parameter.grad for parameter in parameters]
        for parameter, gradient in zip(parameters, others, strict=True):
            parameter.grad = gradient

    def _clip_each_and_add(self, settings: dict[str, Any]) -> None:
        scaler = getattr(self, "loss_scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        settings = {
            key: value * scale if key in ("max_norm", "clip_value") else value for key, value in settings.items()
        }
        parameters = self._parameters()
        gradients = [g for g in (*(p.grad for p in parameters), *self._other_gradients) if g is not None]
        scaled = scaler is not None and scaler.is_enabled()
        if scaled and "clip_value" in settings and not all(gradient.isfinite().all() for gradient in gradients):
            settings["clip_value"] = math.inf  # a clipped infinity is a number: the scaler would not skip this step
        for name in ("", "_aug"):
            with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
            size = self.clip_func(with_gradient, **settings) if with_gradient else None
            if size is not None:  # clipping by value returns nothing
                self.message_hub.update_scalar(f"train/{self.grad_name}{name}", float(size) / scale)
            self._swap_gradients()
        for parameter, other in zip(parameters, self._other_gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = other
            elif other is not None:
                parameter.grad.add_(other)


@OPTIM_WRAPPERS.register_module()
class NetAugOptimWrapper(_NetAugStep, OptimWrapper):
    __doc__ = f"MMEngine's ``OptimWrapper`` with NetAug's augmented pass.\n\n    {_NetAugStep.__doc__}"


class _AmpAnywhere(AmpOptimWrapper):
    """``AmpOptimWrapper``, which refuses to be built without an accelerator, and bfloat16 on a CPU.

    bfloat16 needs no loss scaling.
    """

    def __init__(self, *args: Any, dtype: str | torch.dtype | None = None, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            super().__init__(*args, dtype=dtype, **kwargs)
            return
        if dtype not in (None, "bfloat16", torch.bfloat16):
            raise ValueError(f"mixed precision on a CPU is bfloat16, not {dtype}")
        kwargs.pop("loss_scale", None)
        OptimWrapper.__init__(self, *args, **kwargs)
        self.loss_scaler, self._scale_update_param = torch.amp.GradScaler("cpu", enabled=False), None
        self.cast_dtype = torch.bfloat16


@OPTIM_WRAPPERS.register_module()
class NetAugAmpOptimWrapper(_NetAugStep, _AmpAnywhere):
    """``NetAugOptimWrapper`` in mixed precision: MMEngine's ``AmpOptimWrapper``, and bfloat16 on a CPU."""


def _kept(value: Any) -> Any:
    """What the base pass is given, for the augmented pass: images as they are, annotations copied.

    Some of mmdet's losses change the annotations. This is several times as fast as ``copy.deepcopy``.
    """
    if isinstance(value, dict):  # the branches of a semi-supervised detector
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(item, BaseDataElement) for item in value):
        return [_copied(item) for item in value]
    return _copied(value) if isinstance(value, BaseDataElement) else value


def _copied(value: Any) -> Any:
    if isinstance(value, BaseDataElement):
        copied = copy.copy(value)
        vars(copied).update({name: _copied(item) for name, item in vars(value).items()})
        return copied
    if isinstance(value, Tensor | set):
        return value.clone() if isinstance(value, Tensor) else set(value)
    return value if isinstance(value, str | int | float | tuple | None) else copy.deepcopy(value)


def _first_images(args: tuple, kwargs: dict[str, Any], share: float) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a forward pass cut to the first images of the batch: at least two, which batch norms need.

    Tensors and lists as long as the images' tensor, the first of all, are taken to hold one item an image.
    """
    images = next((len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if images is None:
        raise TypeError("share cuts a batch by its tensor of images, and this model is given none: set share=1")
    count = min(images, max(2, round(share * images)))

    def cut(value: Any) -> Any:
        per_image = isinstance(value, Tensor | list | tuple) and len(value) == images
        return value[:count] if per_image else value

    return tuple(map(cut, args)), {key: cut(value) for key, value in kwargs.items()}


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without the wrapper of distributed training."""
    return model.module if is_model_wrapper(model) else model


@contextlib.contextmanager
def _tiny_statistics_kept(modules: list[nn.Module]) -> Iterator[None]:
    """The tiny network's running statistics stay as they are; those of additional channels follow the batch.

    Sorting may bring an additional channel into the tiny network, which then evaluates with its statistics.
    """

    def block(module: nn.Module, name: str) -> Any:
        return module.base_block(name) if isinstance(module, Elastic) and name in module.elastic_axes else ...

    kept = [
        (module, name, block(module, name), buffer[block(module, name)].clone())
        for module in modules
        for name, buffer in (module.named_buffers(recurse=False) if module.training else ())
    ]
    try:
        yield
    finally:
        for module, name, where, values in kept:  # a norm by hand may have put another tensor there
            module._buffers[name][where] = values


@contextlib.contextmanager
def _own_randomness(seed: str) -> Iterator[None]:
    """Random numbers drawn inside (dropout, samplers of a head) follow from ``seed`` and leave no trace outside."""
    number = random.Random(seed).getrandbits(32)
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        random.seed(number)
        np.random.seed(number)
        torch.default_generator.manual_seed(number)
        if devices:
            torch.cuda.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
