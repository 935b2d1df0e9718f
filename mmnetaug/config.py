"""Helpers that read configs, of data sets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset`` above all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def as_list(value: Any) -> list:
    """What a config holds as one or several (an evaluator, say), as a list; of nothing, an empty one."""
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


def type_name(config: Mapping[str, Any]) -> str:
    """The ``type`` of a config without its scope; types may be given as names or as the classes themselves."""
    kind = config.get("type", "")
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def leaves(dataset: dict) -> Iterator[dict]:
    """The data sets that wrappers are around, from the first to the last."""
    parts = [dataset["dataset"]] if dataset.get("dataset") else dataset.get("datasets") or []
    if not parts:
        yield dataset
    for part in parts:
        yield from leaves(part)


def first_pipeline(dataset: dict) -> list[dict] | None:
    """The transforms of a data set (of the first of several), or None where it hands over ready images."""
    return next((leaf["pipeline"] for leaf in leaves(dataset) if leaf.get("pipeline")), None)


def with_pipeline(dataset: dict, pipeline: list[dict] | None) -> dict:
    """A data set without what repeats, mixes or balances it, its images through other transforms.

    Args:
        dataset: Its config, not changed.
        pipeline: The transforms; None leaves its own.

    Returns:
        A config in which ``ConcatDataset`` is the only wrapper.
    """
    if dataset.get("dataset"):
        return with_pipeline(dataset["dataset"], pipeline)
    if dataset.get("datasets"):
        return {**dataset, "datasets": [with_pipeline(part, pipeline) for part in dataset["datasets"]]}
    return dict(dataset) if pipeline is None else {**dataset, "pipeline": pipeline}
