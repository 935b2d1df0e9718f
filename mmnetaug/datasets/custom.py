"""Detection data of users: finds layout, splits and class names, and writes them into the config.

A config requests this with ``data_layout = 'auto'`` and a ``data_root`` (see ``configs/_base_/custom_data.py``). It is
filled with stock settings: the config that MMEngine saves in the work directory names every file and class, and runs
without this module.
"""

from collections.abc import Sequence
from os.path import normpath
from pathlib import Path

from mmengine.config import Config

from mmnetaug.config import SPLITS, iter_heads, split_leaves
from mmnetaug.errors import DataError, UserError

from .splits import find_splits, read_classes


def fill_config(cfg: Config, data_root: str | Path | None = None) -> Config:
    """Sets the data root of a config and, if it requests that, finds layout, splits and classes.

    Args:
        cfg: A whole config, changed in place.
        data_root: Folder of the data; by default the config's own ``data_root``.

    Returns:
        The same config. If it had ``data_layout = 'auto'``, each data loader now reads its split (see
        :func:`find_splits`), the evaluators fit the layout, and every head's ``num_classes`` is the number of classes.

    Raises:
        DataError: There are no data below ``data_root``, a split is missing, or no object is annotated.
        UserError: The config has no data root to replace, or no head whose classes could be set.
    """
    if data_root is not None:
        set_data_root(cfg, data_root)
    if cfg.get("data_layout") != "auto":
        return cfg
    root = Path(cfg.data_root)
    cfg.data_layout, splits = find_splits(root, Path(cfg.get("work_dir") or "work_dirs").resolve())
    classes = cfg.get("classes") or read_classes(root, splits["train"])
    if not classes:
        raise DataError(f"no image listed in {root / splits['train']['ann_file']} has an annotated object.")
    cfg.data_root = str(root)  # the same string as in the data sets, so that set_data_root can replace it
    set_classes(cfg, (classes,) if isinstance(classes, str) else classes)
    for name, split in splits.items():
        for dataset in split_leaves(cfg, name):
            for key, value in dict(split, data_root=str(root)).items():
                dataset[key] = value  # update() would merge nested dicts
    for name in ("val", "test"):
        if cfg.data_layout == "voc":
            # 11-point interpolation is only for VOC 2007, to compare with published results
            cfg[f"{name}_evaluator"] = dict(type="mmdet.VOCMetric", metric="mAP", eval_mode="area")
        else:
            ann_file = str(root / splits[name]["ann_file"])
            cfg[f"{name}_evaluator"] = dict(type="mmdet.CocoMetric", metric="bbox", ann_file=ann_file)
    return cfg


def set_classes(cfg: Config, classes: Sequence[str]) -> None:
    """Sets the class names of every data set of a config, and ``num_classes`` of every head.

    Raises:
        UserError: The model's config has no ``num_classes``.
    """
    cfg.classes = tuple(classes)
    for name in SPLITS:
        for dataset in split_leaves(cfg, name):
            dataset["metainfo"] = dict(classes=cfg.classes)
    heads = list(iter_heads(cfg.model))
    if not heads:
        raise UserError("the model's config gives no num_classes in a head: write one, its value does not matter.")
    for head in heads:
        head["num_classes"] = len(cfg.classes)


def set_data_root(cfg: Config, data_root: str | Path) -> None:
    """Replaces the data root in every data set and evaluator of a config.

    MMEngine substitutes ``data_root`` while it reads the file, so overriding the variable later has no effect.

    Args:
        cfg: A whole config with a ``data_root``, changed in place.
        data_root: The new one.

    Raises:
        UserError: The config has no data root, or no data set below it.
    """
    new = str(data_root).rstrip("/") or "/"
    old = cfg.get("data_root")
    if old is None:
        raise UserError("the config has no data_root that could be replaced.")
    old, replaced = normpath(old), []

    def replace(value):
        if isinstance(value, dict):
            for key in list(value):
                value[key] = replace(value[key])
        elif isinstance(value, list | tuple):
            return type(value)(replace(item) for item in value)
        elif isinstance(value, str) and value and f"{normpath(value)}/".startswith(f"{old}/"):
            replaced.append(value)
            return new + normpath(value)[len(old) :]
        return value

    for name in SPLITS:
        for key in (f"{name}_dataloader", f"{name}_evaluator"):
            replace(cfg.get(key))
    if not replaced and cfg.get("data_layout") != "auto":  # those data sets are filled in later
        raise UserError(f"no data set of the config lies below its data_root, {old}: set theirs with --cfg-options.")
    cfg.data_root = new
