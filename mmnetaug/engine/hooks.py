"""Hooks: the schedule of the augmentation, channel sorting, and checkpoints with their tiny twins."""

from __future__ import annotations

import inspect
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmdet.models import SemiBaseDetector
from mmengine.dist import is_distributed, is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from mmnetaug.checkpoint import find_last_checkpoint, unpickling
from mmnetaug.elastic import ElasticSpace, base_state_dict, sort_hidden_channels
from mmnetaug.files import replaced_when_done
from mmnetaug.registry import HOOKS

from .augmented_pass import unwrapped
from .optim_wrapper import NetAugOptimWrapper


@HOOKS.register_module()
class NetAugScheduleHook(Hook):
    """Switches width and expand augmentation off during training; with both off, training is plain.

    The authors switch width augmentation off for the second half and keep expand augmentation to the end
    (``width_until=0.5``). The state depends on the training progress alone, so it is the same after a resume.

    Args:
        width_until: When width augmentation ends: a fraction of all iterations if below 1, otherwise a number of epochs
            (iterations with ``by_epoch=False``). None: never.
        expand_until: The same for expand augmentation.
        by_epoch: Whether numbers of at least 1 count epochs.
    """

    def __init__(
        self, width_until: float | None = None, expand_until: float | None = None, by_epoch: bool = True
    ) -> None:
        for name, until in (("width_until", width_until), ("expand_until", expand_until)):
            if until is not None and until < 0:
                raise ValueError(f"{name} must not be negative, got {until}")
        self.width_until, self.expand_until, self.by_epoch = width_until, expand_until, by_epoch

    def before_train(self, runner: Runner) -> None:
        """Raises TypeError without a NetAug optimizer wrapper, ValueError if the training has no epochs to count."""
        _check(runner, self, self.by_epoch and max(self.width_until or 0, self.expand_until or 0) >= 1)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Sets the wrapper's switches for this iteration."""
        wrapper = runner.optim_wrapper
        # the same for all iterations accumulated into a step: the first one counts
        iteration = runner.iter - wrapper.inner_count % wrapper._accumulative_counts

        def is_on(until: float | None) -> bool:
            if until is None:
                return True
            if until < 1:
                return iteration < until * runner.max_iters
            return iteration < (until * runner.max_iters / runner.max_epochs if self.by_epoch else until)

        wrapper.width, wrapper.expand = is_on(self.width_until), is_on(self.expand_until)


@HOOKS.register_module()
class ChannelSortHook(Hook):
    """Sorts hidden channels by importance while width augmentation is on, as the authors do at every epoch's start.

    Momentum (or Adam's moments), norm statistics, the copy of an ``EMAHook`` and the teacher of a semi-supervised
    detector are sorted too.

    Args:
        interval: Sort every ``interval`` epochs (iterations with ``by_epoch=False``).
        by_epoch: Whether ``interval`` counts epochs.
    """

    priority = "LOW"  # after NetAugScheduleHook, which switches width augmentation

    def __init__(self, interval: int = 1, by_epoch: bool = True) -> None:
        self.interval, self.by_epoch = interval, by_epoch

    def before_train(self, runner: Runner) -> None:
        """Raises TypeError without a NetAug optimizer wrapper, ValueError if the training has no epochs to count."""
        _check(runner, self, self.by_epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Sorts if it is due, or in the next iteration that starts a new accumulation of gradients."""
        wrapper = runner.optim_wrapper
        accumulated = wrapper._accumulative_counts
        if not wrapper.width or wrapper.inner_count % accumulated:
            return
        since = runner.iter % self.interval  # iterations since it became due: known after a resume, too
        if self.by_epoch:
            since = batch_idx if runner.epoch % self.interval == 0 else accumulated
        if since >= accumulated:
            return
        models = [unwrapped(runner.model)]
        models += [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
        if isinstance(models[0], SemiBaseDetector):
            models = [network for model in models for network in (model.student, model.teacher)]
        trained, *averages = models
        for name, module in trained.named_modules():
            if isinstance(getattr(module, "elastic", None), ElasticSpace):
                copies = [average.get_submodule(name) for average in averages]
                sort_hidden_channels(module, wrapper.optimizer, copies)


@register_backend("mmnetaug_atomic", force=True)
class AtomicBackend(LocalBackend):
    """Writes local files atomically, and removes old ones only after their successors are written."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._condemned: dict[Path, int] = {}

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes under a temporary name and renames."""
        with replaced_when_done(filepath) as temporary:
            super().put(obj, temporary)

    def remove(self, filepath: str | Path) -> None:
        """Marks the file for removal by ``sweep``."""
        self._condemned[Path(filepath)] = os.stat(filepath).st_mtime_ns

    def sweep(self) -> None:
        """Removes marked files, unless rewritten since, and their tiny twins."""
        for path, modified in self._condemned.items():
            if path.exists() and path.stat().st_mtime_ns == modified:
                path.unlink()
                tiny_path(path).unlink(missing_ok=True)
        self._condemned.clear()


@HOOKS.register_module()
class TinyCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, atomic, with a checkpoint of the tiny network beside every checkpoint.

    ``epoch_10.pth`` (everything needed to resume) gets a twin ``epoch_10_tiny.pth``: the tiny network's weights under
    their stock names and in base shapes, tensors and plain types only. It loads strictly into the config without
    NetAug, with ``weights_only=True`` and without mmnetaug. For a plain model the twin holds all weights.

    A checkpoint written between accumulated gradients holds them, so that a resumed run equals one that was never
    stopped. With several processes they are lost, as MMEngine warns.

    Of the best checkpoint (``save_best``) only the twin is kept, since training resumes from the last checkpoint; with
    ``published_keys`` both are.

    Args:
        args: As of ``CheckpointHook``.
        kwargs: As of ``CheckpointHook``; checkpoints go to the local file system.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("backend_args", {"backend": "mmnetaug_atomic"})
        super().__init__(*args, **kwargs)
        # CheckpointHook accepts any argument and fails only at the first save
        known = inspect.signature(Runner.save_checkpoint).parameters
        if unknown := [name for name in self.args if name not in known]:
            raise TypeError(f"CheckpointHook has no argument {', '.join(unknown)}")
        self._resumed_gradients: dict[str, list[Tensor | None]] = {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Adds the accumulated gradients."""
        if "optimizer" not in checkpoint or is_distributed():
            return
        waiting = {"grad": [parameter.grad for parameter in _parameters(runner)]}
        if getattr(runner.optim_wrapper, "_other_gradients", None):  # of the augmented passes
            waiting["other"] = runner.optim_wrapper._other_gradients
        if any(gradient is not None for gradients in waiting.values() for gradient in gradients):
            checkpoint["accumulated_gradients"] = waiting

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keeps accumulated gradients until the optimizer is built."""
        self._resumed_gradients = checkpoint.get("accumulated_gradients", {}) if runner._resume else {}

    def before_train(self, runner: Runner) -> None:
        """On resume, writes a twin that a killed run left out and restores accumulated gradients."""
        super().before_train(runner)
        if runner._resume:
            self._finish(runner, [find_last_checkpoint(Path(runner.work_dir))])
            self._keep_twins(runner, list(Path(self.out_dir).glob("best_*[0-9].pth")))
        if not self._resumed_gradients:
            return
        parameters = _parameters(runner)
        on_device = {
            name: [None if g is None else g.to(p.device) for p, g in zip(parameters, gradients, strict=True)]
            for name, gradients in self._resumed_gradients.items()
        }
        self._resumed_gradients = {}
        for parameter, gradient in zip(parameters, on_device["grad"], strict=True):
            parameter.grad = gradient
        if "other" in on_device:
            runner.optim_wrapper._other_gradients = on_device["other"]
        runner.logger.info("restored the accumulated gradients of the checkpoint")

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._finish(runner, [self.last_ckpt])

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keeps the twins of the best checkpoints, and removes those of earlier ones."""
        before = self._best()
        super().after_val_epoch(runner, metrics)
        if self._best():
            self._keep_twins(runner, self._best())
        if is_main_process():
            for path in before - self._best():
                tiny_path(path).unlink(missing_ok=True)

    def _best(self) -> set[str]:
        paths = [getattr(self, "best_ckpt_path", None), *getattr(self, "best_ckpt_path_dict", {}).values()]
        return set(filter(None, paths))

    @master_only
    def _keep_twins(self, runner: Runner, saved: Iterable[str | Path]) -> None:
        """Writes the twins of the best checkpoints, then removes these."""
        self._finish(runner, saved)
        if self.published_keys is None:
            for path in map(Path, saved):
                path.unlink(missing_ok=True)

    def after_train(self, runner: Runner) -> None:
        """Publishes the run's own checkpoints (``published_keys``)."""
        with unpickling(anything=True):
            super().after_train(runner)

    @master_only
    def _finish(self, runner: Runner, saved: Iterable[str | Path | None]) -> None:
        """Writes twins that are missing or older than their checkpoints, then removes replaced checkpoints.

        A twin is made from its checkpoint's file, which holds the EMA copy if there is one, since a run may have been
        killed between writing the two.
        """
        for path in map(Path, filter(None, saved)):
            twin = tiny_path(path)
            if path.exists() and (not twin.exists() or twin.stat().st_mtime_ns < path.stat().st_mtime_ns):
                written = io.BytesIO()  # torch's own writer hides the cause of an error
                torch.save(_tiny_checkpoint(runner, path), written)
                with replaced_when_done(twin) as temporary:
                    temporary.write_bytes(written.getvalue())
        if isinstance(self.file_backend, AtomicBackend):
            self.file_backend.sweep()


def _parameters(runner: Runner) -> list[nn.Parameter]:
    wrappers = runner.optim_wrapper
    wrappers = wrappers.values() if isinstance(wrappers, OptimWrapperDict) else [wrappers]
    return [parameter for one in wrappers for group in one.optimizer.param_groups for parameter in group["params"]]


def _tiny_checkpoint(runner: Runner, path: Path) -> dict[str, Any]:
    model = unwrapped(runner.model)
    with unpickling(anything=True):  # this run's own
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    meta = {name: checkpoint["meta"][name] for name in ("epoch", "iter", "mmengine_version")}
    of_data = json.dumps(checkpoint["meta"].get("dataset_meta", {}), default=str, skipkeys=True)
    meta["dataset_meta"] = json.loads(of_data)  # plain types, which load with weights_only=True
    return {"state_dict": base_state_dict(model, checkpoint["state_dict"]), "meta": meta}


def _check(runner: Runner, hook: Hook, counts_epochs: bool) -> None:
    name = type(hook).__name__
    if counts_epochs and isinstance(runner.train_loop, IterBasedTrainLoop):
        raise ValueError(f"this training has no epochs for {name} to count: set its by_epoch=False")
    if not isinstance(runner.optim_wrapper, NetAugOptimWrapper):
        raise TypeError(
            f"{name} is for NetAug, but optim_wrapper is a {type(runner.optim_wrapper).__name__}: set "
            "optim_wrapper.type='mmnetaug.NetAugOptimWrapper' or leave the hook out"
        )


def tiny_path(path: str | Path) -> Path:
    """Path of a checkpoint's tiny twin."""
    path = Path(path)
    return path.with_name(f"{path.stem}_tiny.pth")
