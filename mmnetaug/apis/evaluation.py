"""Evaluates tiny networks on their test data, with PyTorch or with any other function that computes the outputs."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import Subset

from mmnetaug.checkpoint import read_checkpoint
from mmnetaug.config import as_list, first_pipeline, type_name, with_pipeline, without_netaug
from mmnetaug.deploy.onnx import OnnxNetwork
from mmnetaug.deploy.tflite import TFLiteNetwork
from mmnetaug.elastic import base_state_dict, evaluating, find_spaces
from mmnetaug.engine import NetAugOptimWrapper
from mmnetaug.engine.augmented_pass import unwrapped
from mmnetaug.errors import UserError
from mmnetaug.models.tensor_mode import dense_heads, flatten_tensors, image_channels, is_detector, untraced_readers
from mmnetaug.terminal import progress

from .build import build_model, build_runner, without_teacher
from .input_size import fix_input, shape_of_images
from .preflight import check_classes, check_weights

RawOutputs = Callable[[np.ndarray], list[np.ndarray]]
"""Maps a batch (N, C, H, W) float32 to the outputs of :func:`mmnetaug.models.tensor_mode.tensor_forward`."""

# By name in the evaluators, the best first: VOCMetric rounds AP50 to three decimals, but not its mean of one threshold.
HEADLINES = {
    "pascal_voc/mAP": ("AP50", 1.0),
    "pascal_voc/AP50": ("AP50", 1.0),
    "coco/bbox_mAP_50": ("AP50", 1.0),
    "accuracy/top1": ("top-1", 0.01),
}


# arguments that NetAug adds to those of MMEngine's wrapper
OF_THE_PASS = [n for n, of in signature(NetAugOptimWrapper).parameters.items() if of.kind == of.KEYWORD_ONLY]


def load_tiny(
    cfg: Config, checkpoint: str, trusted: bool = False, classes: Sequence[str] = ()
) -> tuple[Config, dict[str, Tensor]]:
    """Loads the tiny network's weights of a checkpoint, trained with NetAug or without.

    Args:
        cfg: Config of the checkpoint, with NetAug or without.
        checkpoint: Tiny or full checkpoint.
        trusted: Whether it may hold any pickle.
        classes: Expected classes, compared with those in the checkpoint, if it has any; none to accept all.

    Returns:
        The config without NetAug, and a state dict that loads strictly into its model.

    Raises:
        UserError: The checkpoint belongs to another network, or to other classes.
        CheckpointError: It cannot be read.
    """
    plain = copy.deepcopy(cfg)
    plain.model = without_netaug(plain.model)
    _train_plainly(plain)
    weights = read_checkpoint(checkpoint, trusted)
    model = build_model(without_teacher(cfg))
    check_weights(model, weights, checkpoint, complete=True)
    check_classes(weights, classes, checkpoint)
    state = {name.removeprefix("module."): value for name, value in weights.get("state_dict", weights).items()}
    if find_spaces(model):
        model.load_state_dict(state, strict=False)
        state = base_state_dict(model)
    own = build_model(plain).state_dict()
    # converted checkpoints may lack the step counters of norms, on which nothing depends
    return plain, {name: state[name].detach().clone() if name in state else own[name] for name in own}


def _train_plainly(cfg: Config) -> None:
    """Removes NetAug's optimizer wrapper and hooks from a config."""
    wrapper = cfg.get("optim_wrapper") or {}
    if type_name(wrapper) in ("NetAugOptimWrapper", "NetAugAmpOptimWrapper"):
        cfg.optim_wrapper = {key: value for key, value in wrapper.items() if key not in OF_THE_PASS}
        cfg.optim_wrapper.type = type_name(wrapper).removeprefix("NetAug")
    elastic = ("NetAugScheduleHook", "ChannelSortHook")
    for name in [name for name, hook in (cfg.get("default_hooks") or {}).items() if type_name(hook or {}) in elastic]:
        del cfg.default_hooks[name]
    if cfg.get("custom_hooks"):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if type_name(hook) not in elastic]


def build_tiny(cfg: Config, state: dict[str, Tensor]) -> nn.Module:
    """Builds the plain model of a config with these weights, in eval mode."""
    model = build_model(cfg)
    model.load_state_dict(state, strict=True)
    return model.eval()


def evaluate(
    cfg: Config,
    state: dict[str, Tensor],
    work_dir: str,
    size: tuple[int, int],
    run: RawOutputs | None = None,
) -> tuple[str, float]:
    """Measures a tiny network on the test data of its config, with one input size for all images.

    Args:
        cfg: Plain config; see :func:`load_tiny`.
        state: Its weights.
        work_dir: Folder of MMEngine's log.
        size: ``(H, W)`` to pad images to.
        run: Computes the raw outputs in place of the PyTorch model.

    Returns:
        ``("AP50", value)`` or ``("top-1", value)``, a fraction.
    """
    cfg = copy.deepcopy(cfg)
    cfg.work_dir, cfg.load_from, cfg.resume = str(work_dir), None, False
    cfg.custom_hooks, cfg.log_level, cfg.visualizer = [], "WARNING", None
    for evaluator in as_list(cfg.test_evaluator):
        if type_name(evaluator) == "VOCMetric":  # the mean of one threshold is AP50, not rounded
            evaluator["iou_thrs"] = 0.5
    runner = build_runner(cfg)
    model = unwrapped(runner.model)
    model.load_state_dict(state, strict=True)
    if run is None:
        fix_input(model, size)
    else:
        replace_network(model, run, size)
    runner.register_hook(_ProgressHook())
    return headline(runner.test())


class _ProgressHook(Hook):
    def before_test_epoch(self, runner: Runner) -> None:
        self.bar = progress("testing, batches", len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.bar.update()

    def after_test_epoch(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.bar.close()


def headline(metrics: dict[str, float]) -> tuple[str, float]:
    """Name and value, a fraction, of the metric to compare networks by.

    Raises:
        UserError: None of the metrics is known.
    """
    for key, (name, factor) in HEADLINES.items():
        if key in metrics:
            return name, float(metrics[key]) * factor
    raise UserError(f"none of the metrics {', '.join(metrics)} is AP50 or top-1: set test_evaluator in the config")


@contextlib.contextmanager
def running_exported(cfg: Config, model: nn.Module, path: str, tflite_python: str | None) -> Iterator[None]:
    """Has a model run a file of ``tools/export.py`` in place of its network, at the size of the test images.

    Args:
        cfg: Plain config.
        model: Its model, changed in place.
        path: An ``.onnx`` or ``.tflite`` file.
        tflite_python: Interpreter of LiteRT's environment; by default this one, if LiteRT is installed here.

    Raises:
        UserError: The file cannot be run, or is another network.
    """
    shape = shape_of_images(cfg, model)
    with contextlib.ExitStack() as stack:
        if path.endswith(".onnx"):
            network: RawOutputs = OnnxNetwork(path, shape)
        elif tflite_python or importlib.util.find_spec("ai_edge_litert"):
            network = stack.enter_context(TFLiteNetwork(tflite_python or sys.executable, path))
        else:
            raise UserError("a .tflite file is run by LiteRT, which is not installed here: see --tflite-python")
        replace_network(model, network, shape[2:])
        yield


def replace_network(model: nn.Module, run: RawOutputs, size: tuple[int, int]) -> None:
    """Replaces the network of a model by another function of one input size; the model's own code decodes the outputs.

    Args:
        model: Single-stage detector or classifier, changed in place.
        run: Computes the outputs of the model's head.
        size: ``(H, W)`` of the input.

    Raises:
        UserError: The model has parts that do not depend on the image alone, or ``run`` is another network.
    """
    fix_input(model, size)
    head = head_of(model)
    with evaluating(model), torch.no_grad():
        image = torch.zeros(1, image_channels(model), *size, device=next(model.parameters()).device)
        example = head(model.extract_feat(image))
    expected = [tuple(tensor.shape) for tensor in flatten_tensors(example)]
    given = [getattr(output, "shape", None) for output in run(image.cpu().numpy())]  # ONNX has sequences, too
    if given != expected:
        raise UserError(f"that is another network: it returns arrays of shapes {given}, and the config's {expected}")

    def forward(images: Tensor) -> Any:
        outputs = iter(run(np.ascontiguousarray(images.cpu().numpy(), np.float32)))

        def filled(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [filled(item) for item in value]
            if isinstance(value, dict):
                return {key: filled(item) for key, item in value.items()}
            return torch.from_numpy(next(outputs)).to(images.device) if isinstance(value, Tensor) else value

        return filled(example)

    model.extract_feat = lambda images, *args, **kwargs: images
    head.forward = forward


def head_of(model: nn.Module) -> nn.Module:
    """The head of a single-stage detector or classifier, whose outputs are the raw outputs.

    Raises:
        UserError: The model is of another kind.
    """
    if is_detector(model) and not untraced_readers(model) and dense_heads(model) == ["bbox_head"]:
        return model.bbox_head
    if hasattr(model, "head") and hasattr(model, "extract_feat"):
        return model.head
    raise UserError(
        f"{type(model).__name__} is neither a classifier nor a single-stage detector: only of these the raw outputs "
        "depend on the image alone"
    )


def calibration_images(cfg: Config, model: nn.Module, count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Training images as in deployment: through the test pipeline, preprocessed and padded.

    Args:
        cfg: Plain config.
        model: Its model, for the data preprocessor.
        count: Number of images, spread evenly over the training set.
        size: ``(H, W)`` of the network's input.

    Yields:
        (1, C, H, W) float32.

    Raises:
        UserError: There are no training images.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    dataset = (cfg.get("train_dataloader") or {}).get("dataset")
    if not dataset:
        raise UserError("int8 is calibrated on training images, and this config has no train_dataloader")
    data = DATASETS.build(copy.deepcopy(with_pipeline(dataset, first_pipeline(cfg.test_dataloader.dataset))))
    if count < 1 or not len(data):
        raise UserError(f"no images to calibrate int8 with: {len(data)} training images, {count} asked for")
    chosen = sorted({int(i) for i in np.linspace(0, len(data) - 1, min(count, len(data)))})
    collate = "default_collate" if cfg.get("default_scope") == "mmpretrain" else "pseudo_collate"
    loader = dict(
        batch_size=1,
        num_workers=0,
        dataset=Subset(data, chosen),
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=cfg.test_dataloader.get("collate_fn", dict(type=collate)),
    )
    with progress("calibration images", len(chosen)) as bar:
        for batch in Runner.build_dataloader(loader):
            image = model.data_preprocessor(batch, False)["inputs"]
            yield pad(image, (0, size[1] - image.shape[3], 0, size[0] - image.shape[2])).cpu().numpy()
            bar.update()
