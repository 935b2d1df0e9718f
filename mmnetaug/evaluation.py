"""Measuring a tiny network on its test data: at any input size, and with anything that computes its raw outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._pytree import tree_flatten, tree_unflatten

from mmnetaug.analysis.cost import SIZE_ARGUMENTS, find_input_shape
from mmnetaug.checkpoint import read_checkpoint
from mmnetaug.cli import UserError, build_runner, reported_as_user_error
from mmnetaug.datasets.wrappers import first_pipeline, with_pipeline
from mmnetaug.elastic import base_state_dict, evaluating, find_spaces
from mmnetaug.engine.optim_wrapper import unwrapped
from mmnetaug.forward import dense_heads, image_channels, is_detector, untraced_readers
from mmnetaug.preflight import build_model, check_classes, check_weights
from mmnetaug.registry import as_list, type_name
from mmnetaug.terminal import Progress

RawOutputs = Callable[[np.ndarray], list[np.ndarray]]
"""Maps a batch (N, C, H, W) float32 to what :func:`mmnetaug.forward.tensor_forward` returns."""

# What evaluators call it, the best first: VOCMetric rounds AP50 to three decimals, but not its mean over one threshold.
HEADLINES = {
    "pascal_voc/mAP": ("AP50", 1.0),
    "pascal_voc/AP50": ("AP50", 1.0),
    "coco/bbox_mAP_50": ("AP50", 1.0),
    "accuracy/top1": ("top-1", 0.01),
}


OF_THE_TEACHER = ("teacher", "teacher_checkpoint", "temperature", "weight")
"""Arguments of ``DistilledClassifier`` that an ``ImageClassifier`` has none of."""

OF_THE_PASS = ("alpha", "seed", "clip_together", "interval", "share")
"""Arguments of ``NetAugOptimWrapper`` that an ``OptimWrapper`` has none of."""

# --- the network ------------------------------------------------------------------------------------------------------


def load_tiny(
    cfg: Config, checkpoint: str, trusted: bool = False, classes: Sequence[str] = ()
) -> tuple[Config, dict[str, Tensor]]:
    """The plain config and the tiny weights of a checkpoint, whether it was trained with NetAug or not.

    Args:
        cfg: Config of the checkpoint, with NetAug or without.
        checkpoint: Tiny or full checkpoint.
        trusted: Whether it may hold any pickle.
        classes: Those that it must have been trained on, if it says; none for any.

    Returns:
        The config without NetAug, and a state dict that loads strictly into its model.

    Raises:
        UserError: It is the checkpoint of another network, or of other classes.
        CheckpointError: It cannot be read.
    """
    plain = copy.deepcopy(cfg)
    plain.model = without_netaug(plain.model)
    _train_plainly(plain)
    weights = read_checkpoint(checkpoint, trusted)
    model = build_model(cfg)
    check_weights(model, weights, checkpoint, complete=True)
    check_classes(weights, classes, checkpoint)
    state = {name.removeprefix("module."): value for name, value in weights.get("state_dict", weights).items()}
    if find_spaces(model):
        model.load_state_dict(state, strict=False)
        state = base_state_dict(model)
    own = build_model(plain).state_dict()
    # step counters of statistics may be absent from converted checkpoints, and nothing depends on them
    return plain, {name: state[name].detach().clone() if name in state else own[name] for name in own}


def without_netaug(config: Any) -> Any:
    """A model's config with what is there in training alone taken out: NetAug around it, and a teacher beside it."""
    if isinstance(config, dict):
        if type_name(config) == "NetAug":
            return without_netaug(config["model"])
        if type_name(config) == "DistilledClassifier":
            student = {key: value for key, value in config.items() if key not in OF_THE_TEACHER}
            config = type(config)(student, type="mmpretrain.ImageClassifier")
        return type(config)({key: without_netaug(value) for key, value in config.items()})
    if isinstance(config, list | tuple):
        return type(config)(without_netaug(value) for value in config)
    return config


def _train_plainly(cfg: Config) -> None:
    """Take out of a config what training with NetAug has besides the model, so that it goes on without."""
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
    """The plain model of a config with these weights, in eval mode."""
    model = build_model(cfg)
    model.load_state_dict(state, strict=True)
    return model.eval()


# --- the input size ---------------------------------------------------------------------------------------------------


def set_input_size(cfg: Config, size: int, splits: tuple[str, ...] = ("val", "test")) -> None:
    """Have the pipelines of a config hand ``size`` × ``size`` images to the network.

    Whatever sets a size is scaled: a crop of 224 behind an edge of 256 becomes 112 behind 128. Where a batch
    augmentation draws the size to train at, it and the images it is given are scaled as those of the test are.

    Args:
        cfg: A whole config, changed in place.
        size: Height and width in pixels.
        splits: Which pipelines to change.

    Raises:
        UserError: The network's input would be padded to another size, or no transform sets a size.
    """
    model = cfg.model
    while "data_preprocessor" not in model and isinstance(model.get("model"), dict):  # NetAug and the like
        model = model["model"]
    preprocessor = {**(cfg.get("data_preprocessor") or {}), **(model.get("data_preprocessor") or {})}
    divisor = preprocessor.get("pad_size_divisor", 1)
    if size < 1 or size % divisor:
        raise UserError(
            f"input size {size} is not a multiple of {divisor}, to which this network's data preprocessor pads: "
            f"take {max(size // divisor, 1) * divisor} or {(size // divisor + 1) * divisor}"
        )
    drawn = [augment for augment in preprocessor.get("batch_augments") or [] if "random_size_range" in augment]
    tested = _transforms_with_size(cfg, "test")
    tested_at = min(_edges(*tested[-1])) if tested else None
    for split in splits:
        if not cfg.get(f"{split}_dataloader"):
            continue
        found = _transforms_with_size(cfg, split)
        if not found:
            raise UserError(f"no transform of the {split} pipeline sets a size, so it cannot be changed")
        for pipeline in _pipelines(cfg[f"{split}_dataloader"].dataset):
            _refuse_other_sizes(pipeline)
            if split != "train":
                _keep_original_boxes(pipeline)
        multi_scale = split == "train" and drawn
        ratio = size / (tested_at if multi_scale and tested_at else min(_edges(*found[-1])))
        for transform, key in found:
            scaled = tuple(round(edge * ratio) for edge in _edges(transform, key))
            if isinstance(transform[key], int):
                transform[key] = scaled[0]
            else:
                transform[key] = scaled if multi_scale else (size, size)
        for augment in drawn if multi_scale else ():
            step = augment.get("size_divisor", 32)  # mmdet's default
            augment["random_size_range"] = tuple(
                max(round(edge * ratio / step), 1) * step for edge in augment["random_size_range"]
            )


def _keep_original_boxes(pipeline: list[dict]) -> None:
    """Load annotations last: predictions are compared with them in the coordinates of the original image."""
    [packing] = pipeline[-1:]
    loading = [step for step in pipeline if type_name(step) == "LoadAnnotations"]
    pipeline[:] = [step for step in pipeline[:-1] if step not in loading] + loading + [packing]


def _pipelines(dataset: dict) -> Iterator[list[dict]]:
    if dataset.get("pipeline"):
        yield dataset["pipeline"]
    for inner in [dataset.get("dataset"), *(dataset.get("datasets") or [])]:
        if inner:
            yield from _pipelines(inner)


def _refuse_other_sizes(pipeline: list[dict]) -> None:
    for transform in reversed(pipeline):
        kind = type_name(transform)
        if kind in SIZE_ARGUMENTS and kind != "Pad":  # whatever came before, this is the size
            return
        if kind not in SIZE_ARGUMENTS and any(transform.get(key) for key in ("scale", "img_scale", "crop_size")):
            raise UserError(f"{kind} of the pipeline sets a size too, which cannot be changed: set it in the config")


def _sized(pipeline: list[dict]) -> Iterator[tuple[dict, str]]:
    for transform in pipeline:
        key = SIZE_ARGUMENTS.get(type_name(transform))
        if key and transform.get(key) is not None:
            yield transform, key


def _transforms_with_size(cfg: Config, split: str) -> list[tuple[dict, str]]:
    loader = cfg.get(f"{split}_dataloader")
    return [item for pipeline in _pipelines(loader.dataset) for item in _sized(pipeline)] if loader else []


def _edges(transform: dict, key: str) -> tuple[int, ...]:
    value = transform[key]
    return (value,) if isinstance(value, int) else tuple(value)


def shape_of_images(cfg: Config, model: nn.Module) -> tuple[int, int, int, int]:
    """Shape ``(1, C, H, W)`` of the network's input: the test pipeline's, or where that sets no size, as for CIFAR-10,
    the first test image's.

    Raises:
        UserError: Neither is to be had.
    """
    size = None
    with reported_as_user_error("the size of the input is unknown"):
        if not _transforms_with_size(cfg, "test"):
            init_default_scope(cfg.get("default_scope") or "mmengine")
            size = tuple(DATASETS.build(copy.deepcopy(cfg.test_dataloader.dataset))[0]["inputs"].shape[-2:])
        return find_input_shape(cfg, model, size)


def fix_input(model: nn.Module, size: tuple[int, int]) -> None:
    """Have a model's data preprocessor pad every batch to one size, as a device with a fixed input does.

    Pipelines that keep the aspect ratio give batches of several shapes otherwise.

    Args:
        model: A detector or classifier, changed in place.
        size: ``(H, W)``; zeros, the mean of the images, go below and to the right.
    """

    def pad_batch(module: nn.Module, args: tuple, data: dict) -> dict:
        height, width = data["inputs"].shape[-2:]
        if height > size[0] or width > size[1]:
            raise UserError(
                f"the pipeline gives images of {height}x{width}, larger than the input, {size[0]}x{size[1]}: "
                "--size N fits all of them into a square"
            )
        data["inputs"] = pad(data["inputs"], (0, size[1] - width, 0, size[0] - height))
        for sample in data.get("data_samples") or []:
            if "batch_input_shape" in sample:
                sample.set_metainfo(dict(batch_input_shape=tuple(size)))
        return data

    model.data_preprocessor.register_forward_hook(pad_batch)


# --- measuring --------------------------------------------------------------------------------------------------------


def evaluate(
    cfg: Config,
    state: dict[str, Tensor],
    work_dir: str,
    size: tuple[int, int],
    run: RawOutputs | None = None,
) -> tuple[str, float]:
    """Measure a tiny network on the test data of its config, one fixed input size for all images.

    Args:
        cfg: Plain config; see :func:`load_tiny`.
        state: Its weights.
        work_dir: For MMEngine's log.
        size: ``(H, W)`` that images are padded to.
        run: What computes the raw outputs in place of the PyTorch model.

    Returns:
        ``("AP50", value)`` or ``("top-1", value)``, a fraction.
    """
    cfg = copy.deepcopy(cfg)
    cfg.work_dir, cfg.load_from, cfg.resume = str(work_dir), None, False
    cfg.custom_hooks, cfg.log_level, cfg.visualizer = [], "WARNING", None
    for evaluator in as_list(cfg.test_evaluator):
        if type_name(evaluator) == "VOCMetric":  # one threshold: its mean is AP50 in full
            evaluator["iou_thrs"] = 0.5
    runner = build_runner(cfg)
    model = unwrapped(runner.model)
    model.load_state_dict(state, strict=True)
    fix_input(model, size)
    if run is not None:
        replace_network(model, run, size)
    runner.register_hook(_ProgressHook())
    return headline(runner.test())


class _ProgressHook(Hook):
    def before_test_epoch(self, runner: Runner) -> None:
        self.progress = Progress("testing, batch", len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.progress.step()


def headline(metrics: dict[str, float]) -> tuple[str, float]:
    """Name and value, a fraction, of the metric that networks are compared by.

    Raises:
        UserError: There is none that is known here.
    """
    for key, (name, factor) in HEADLINES.items():
        if key in metrics:
            return name, float(metrics[key]) * factor
    raise UserError(f"none of the metrics {', '.join(metrics)} is AP50 or top-1: set test_evaluator in the config")


def replace_network(model: nn.Module, run: RawOutputs, size: tuple[int, int]) -> None:
    """Put something else in the place of a model's network, and leave decoding to the model's own code.

    Args:
        model: Single-stage detector or classifier, changed in place.
        run: Computes what the model's head would return.
        size: ``(H, W)`` of the input.

    Raises:
        UserError: The model has parts that are no function of the image alone, or ``run`` is another network.
    """
    head = head_of(model)
    with evaluating(model), torch.no_grad():
        image = torch.zeros(1, image_channels(model), *size, device=next(model.parameters()).device)
        example = head(model.extract_feat(image))
    leaves, structure = tree_flatten(example)
    expected = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
    given = [getattr(output, "shape", None) for output in run(image.cpu().numpy())]  # ONNX knows sequences, too
    if given != expected:
        raise UserError(f"that is another network: it returns arrays of shapes {given}, and the config's {expected}")

    def forward(images: Tensor) -> Any:
        outputs = iter(run(np.ascontiguousarray(images.cpu().numpy(), np.float32)))
        filled = [
            torch.from_numpy(next(outputs)).to(images.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]
        return tree_unflatten(filled, structure)

    model.extract_feat = lambda images, *args, **kwargs: images
    head.forward = forward


def head_of(model: nn.Module) -> nn.Module:
    """The part of a single-stage detector or a classifier whose outputs are the network's.

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
    """Training images as the network will get them in use: through the test pipeline, preprocessed and padded.

    Args:
        cfg: Plain config.
        model: Its model, for the data preprocessor.
        count: How many, spread evenly over the training set.
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
    dataset = copy.deepcopy(with_pipeline(dataset, first_pipeline(cfg.test_dataloader.dataset)))
    loader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False), dataset=dataset)
    if cfg.test_dataloader.get("collate_fn") or cfg.get("default_scope") == "mmpretrain":
        loader["collate_fn"] = cfg.test_dataloader.get("collate_fn", dict(type="default_collate"))
    data = Runner.build_dataloader(loader).dataset
    if count < 1 or not len(data):
        raise UserError(f"no images to calibrate int8 with: {len(data)} training images, {count} asked for")
    chosen = sorted({int(i) for i in np.linspace(0, len(data) - 1, min(count, len(data)))})
    loader["dataset"], loader["sampler"] = (
        torch.utils.data.Subset(data, chosen),
        dict(type="DefaultSampler", shuffle=False),
    )
    progress = Progress("calibration image", len(chosen))
    for batch in Runner.build_dataloader(loader):
        progress.step()
        image = model.data_preprocessor(batch, False)["inputs"]
        yield pad(image, (0, size[1] - image.shape[3], 0, size[0] - image.shape[2])).cpu().numpy()
