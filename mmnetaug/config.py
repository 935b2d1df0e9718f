"""Helpers to read configs, also of data sets inside of wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SPLITS = ("train", "val", "test")
NOT_HEADS = ("backbone", "neck", "data_preprocessor", "rpn_head", "teacher")  # not classes of the data


def as_list(value: Any) -> list:
    """Makes a list of a config value that may be a list, a single item or empty, such as an evaluator."""
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


def type_name(config: Mapping[str, Any]) -> str:
    """The ``type`` of a config without its scope; types may be given as names or as the classes themselves."""
    kind = config.get("type", "")
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def without(model: Any, *wrappers: str) -> Any:
    """Replaces wrappers in a model's config, ``NetAug`` or ``Distilled``, by what they wrap."""
    if isinstance(model, dict):
        if type_name(model) in wrappers:
            return without(model["model"], *wrappers)
        return type(model)({key: without(value, *wrappers) for key, value in model.items()})
    if isinstance(model, list | tuple):
        return type(model)(without(value, *wrappers) for value in model)
    return model


def without_netaug(model: Any) -> Any:
    """Removes NetAug and teachers from a model's config."""
    return without(model, "NetAug", "Distilled")


def with_preprocessor(model: Mapping[str, Any], preprocessor: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of a model's config that holds this data preprocessor, unless it has one."""
    return {"data_preprocessor": preprocessor, **model} if preprocessor else dict(model)


def nested(config: Any) -> Iterator[dict]:
    """Yields all dicts in a part of a config, itself first."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    for value in config if isinstance(config, list | tuple) else ():
        yield from nested(value)


def iter_heads(model: dict) -> Iterator[dict]:
    """Yields the parts of a model's config whose ``num_classes`` follows the data."""
    if model.get("num_classes") is not None:
        yield model
    for key, value in model.items():
        if key in NOT_HEADS:
            continue
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, dict):
                yield from iter_heads(part)


def leaves(dataset: dict) -> Iterator[dict]:
    """Yields the configs of the data sets inside of wrappers, in order."""
    parts = [dataset["dataset"]] if dataset.get("dataset") else dataset.get("datasets") or []
    if not parts:
        yield dataset
    for part in parts:
        yield from leaves(part)


def split_leaves(config: Mapping[str, Any], split: str) -> Iterator[dict]:
    """Yields the configs of the data sets of a split, of a whole config; none without such a split."""
    loader = config.get(f"{split}_dataloader")
    return leaves(loader["dataset"]) if loader else iter(())


def first_pipeline(dataset: dict) -> list[dict] | None:
    """The transforms of a data set, or of the first of several; None without a pipeline."""
    return next((leaf["pipeline"] for leaf in leaves(dataset) if leaf.get("pipeline")), None)


def with_pipeline(dataset: dict, pipeline: list[dict] | None) -> dict:
    """Removes wrappers that repeat, mix or balance a data set, and replaces its transforms.

    Args:
        dataset: Its config, not changed.
        pipeline: The transforms; None keeps its own.

    Returns:
        A config whose only wrapper is ``ConcatDataset``.
    """
    if dataset.get("dataset"):
        return with_pipeline(dataset["dataset"], pipeline)
    if dataset.get("datasets"):
        return {**dataset, "datasets": [with_pipeline(part, pipeline) for part in dataset["datasets"]]}
    return dict(dataset) if pipeline is None else {**dataset, "pipeline": pipeline}
