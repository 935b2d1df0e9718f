"""Finds the splits of detection data in the layouts that labelling tools export."""

from __future__ import annotations

import importlib.util
import json
import random
from os.path import isfile, join, normpath
from pathlib import Path
from typing import Any, NamedTuple

from mmnetaug.config import SPLITS
from mmnetaug.errors import DataError
from mmnetaug.files import replaced_when_done
from mmnetaug.layouts import layouts, no_folder

from .coco import read_coco
from .voc import IMAGE_SUFFIXES, read_image_list, read_voc

FOLDERS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}  # of labelling tools
ROBOFLOW = "_annotations.coco.json"  # beside the images
HELD_OUT = 0.1  # of the training images, to select checkpoints if there is no split for that


class Split(NamedTuple):
    """A split that was found.

    Attributes:
        file: Its list of images or annotation file.
        images: Its images, relative to the data root.
        settings: Of its data set, without ``ann_file``.
    """

    file: Path
    images: list[str]
    settings: dict[str, Any]


def find_splits(root: Path, work_dir: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Finds the training, validation and test data below ``root``.

    Args:
        root: Folder of the data.
        work_dir: Folder for ``lists`` (of flat folders, and of YOLO labels as COCO files) and ``held_out``.

    Returns:
        The kind of the annotation files, ``'voc'`` or ``'coco'``, and the settings of the three data sets. Without a
        validation split it is a fixed tenth of the training images, and without a test split that of validation.

    Raises:
        DataError: No data, or splits are missing or share images; or the package that reads YOLO labels is missing.
    """
    layout = find_layout(root)
    find = {"voc": _voc_splits, "flat": _flat_splits, "coco": _coco_splits, "yolo": _yolo_splits}[layout]
    splits = _complete(root, find(root, work_dir / "lists"), work_dir / "held_out")
    return "voc" if layout in ("voc", "flat") else "coco", splits


def read_classes(root: Path, train: dict[str, Any]) -> list[str]:
    """The class names of all training objects.

    Args:
        root: Folder of the data.
        train: Settings of the training data, as :func:`find_splits` returns them.

    Raises:
        DataError: The annotations cannot be read.
    """
    return (_voc_classes if train["type"] == "mmnetaug.VOCLayoutDataset" else _coco_classes)(root, train)


def _complete(root: Path, given: dict[str, Split], folder: Path) -> dict[str, dict]:
    """Settings of all three data sets; what is held out for ``val``, and what is left, is listed in ``folder``."""
    train = given["train"]
    for split in [given[name] for name in ("val", "test") if name in given]:
        if both := set(train.images) & set(split.images):
            raise DataError(
                f"{len(both)} images are in both {train.file.name} and {split.file.name} of {split.file.parent}, "
                f"such as {min(both)}: training images cannot be used for measuring."
            )
    if "val" not in given:
        given = given | {name: train._replace(file=path) for name, path in _hold_out(train.file, folder).items()}
    given = {"test": given["val"], **given}
    return {name: dict(given[name].settings, ann_file=_below(root, given[name].file)) for name in SPLITS}


def _hold_out(file: Path, folder: Path) -> dict[str, Path]:
    """Splits a list of images or a COCO file in two: ``val`` in ``folder`` gets a fixed tenth, ``train`` the rest."""
    is_list = file.suffix == ".txt"
    content = {} if is_list else json.loads(file.read_text())
    images = read_image_list(file) if is_list else content["images"]
    chosen = set(random.Random(0).sample(range(len(images)), max(1, round(HELD_OUT * len(images))) if images else 0))
    if len(chosen) == len(images):
        raise DataError(f"{len(images)} training images are too few to set some aside to choose checkpoints by.")
    files = {split: folder / f"{split}{file.suffix}" for split in ("train", "val")}
    for split, path in files.items():
        part = [one for i, one in enumerate(images) if (i in chosen) == (split == "val")]
        if is_list:
            _write(path, _lines(part))
        else:
            ids = {one["id"] for one in part}
            annotations = [one for one in content["annotations"] if one["image_id"] in ids]
            _write(path, json.dumps({**content, "images": part, "annotations": annotations}))
    return files


def _lines(names: list[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def _write(path: Path, text: str) -> None:
    with replaced_when_done(path) as temporary:
        temporary.write_text(text)


def _below(root: Path, path: Path) -> str:
    """A path relative to ``root`` if it is below it, as data sets with that root expect it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def find_layout(root: Path) -> str:
    """Detects the layout of the data below ``root``.

    Returns:
        ``'voc'`` or ``'coco'``; ``'flat'`` for XML files beside the images, ``'yolo'`` for text files in ``labels``.

    Raises:
        DataError: It is none of these, or both of the first two.
    """
    if not root.is_dir():
        raise DataError(no_folder(root))
    found = _layouts_at(root)
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{root} holds data in VOC and in COCO layout: keep them in separate folders.")
    below = [str(path) for path in sorted(root.iterdir()) if path.is_dir() and _layouts_at(path)]
    hint = f"Did you mean {' or '.join(below)}?\n" if below else ""
    raise DataError(f"{root} holds no data in a layout known here. {hint}{layouts(root)}")


def _layouts_at(root: Path) -> list[str]:
    # some file systems do not distinguish annotations from Annotations
    voc = (root / "JPEGImages").is_dir() and any((root / "Annotations").glob("*.xml"))
    coco = any((root / "annotations").glob("*.json")) or any(root.glob(f"*/{ROBOFLOW}"))
    if voc or coco:
        return ["voc"] * voc + ["coco"] * coco
    if _yolo_names(root) and (any(root.glob("labels/**/*.txt")) or any(root.glob("*/labels/*.txt"))):
        return ["yolo"]
    annotation = next((path for folder in _split_folders(root).values() for path in folder.glob("*.xml")), None)
    return ["flat"] if annotation and any(annotation.with_suffix(suffix).is_file() for suffix in IMAGE_SUFFIXES) else []


def _split_folders(root: Path, within: str = "{}") -> dict[str, Path]:
    """The folders of the splits, such as ``train``, ``valid`` and ``test``; without any, all is for training.

    Args:
        root: Folder of the data.
        within: Where they lie in it, such as ``'images/{}'``.
    """
    found: dict[str, Path] = {}
    for split, names in FOLDERS.items():
        folders = [folder for name in names if (folder := root / within.format(name)).is_dir()]
        if folders:
            found[split] = folders[0]
    return found if "train" in found else {"train": root / within.format("")}


def _flat_splits(root: Path, lists: Path) -> dict[str, Split]:
    """The splits of folders that hold XML files beside the images; their lists are written to ``lists``."""
    found = {}
    for split, folder in _split_folders(root).items():
        names = sorted(path.stem for path in folder.glob("*.xml"))
        _write(lists / f"{split}.txt", _lines(names))
        found[split] = _voc_split(lists / f"{split}.txt", names, _below(root, folder), img_subdir="", ann_subdir="")
    return found


def _voc_splits(root: Path, lists: Path) -> dict[str, Split]:
    """The splits of the lists in ``ImageSets/Main``."""
    folder = root / "ImageSets/Main"
    found = {path.stem: path for path in folder.glob("*.txt")}
    # trainval contains val: train on it only if there is no val
    train = "train" if "train" in found and ("val" in found or "trainval" not in found) else "trainval"
    given = {"train": train} | {name: name for name in ("val", "test") if name in found}
    if train not in found or len(given) == 1:
        missing = "val.txt or test.txt, images to measure on that are not trained on" if train in found else "train.txt"
        raise DataError(f"{folder} has no {missing}.\n{layouts(root)}")
    return {split: _voc_split(found[name], read_image_list(found[name])) for split, name in given.items()}


def _voc_split(file: Path, names: list[str], folder: str = "", **settings: str) -> Split:
    data = dict(type="mmnetaug.VOCLayoutDataset", data_prefix=dict(sub_data_root=folder), **settings)
    return Split(file, [join(folder, name) for name in names], data)


def _voc_classes(root: Path, train: dict[str, Any]) -> list[str]:
    """Sorted. Unreadable files are reported by the checks."""
    names: set[str] = set()
    ids = read_image_list(root / train["ann_file"])
    folder = root / train["data_prefix"]["sub_data_root"] / train.get("ann_subdir", "Annotations")
    if ids and not any((folder / f"{image_id}.xml").is_file() for image_id in ids):
        raise DataError(
            f"no line of {root / train['ann_file']} names an annotation file, such as {f'Annotations/{ids[0]}.xml'!r}: "
            "write one image's name in a line, without suffix or blanks."
        )
    for image_id in ids:
        try:
            names.update(one.name for one in read_voc(folder / f"{image_id}.xml").object)
        except DataError:
            continue
    return sorted(names)


def _coco_splits(root: Path, lists: Path) -> dict[str, Split]:
    """The splits of the JSON files in ``annotations`` or beside the images."""
    beside = {split: folder / ROBOFLOW for split, folder in _split_folders(root).items()}
    if beside["train"].is_file():
        return {split: _coco_split(root, path, path.parent) for split, path in beside.items() if path.is_file()}
    files = {name: path for name in SPLITS if (path := _coco_file(root, name))}
    train = files.get("train")
    files = {name: path for name, path in files.items() if name == "train" or path != train}  # trainval is no val
    if not train or len(files) == 1:
        missing = "*train*.json" if not train else "*val*.json or *test*.json"
        raise DataError(f"{root}/annotations has no {missing}.\n{layouts(root)}")
    return {split: _coco_split(root, path) for split, path in files.items()}


def _coco_split(root: Path, file: Path, folder: Path | None = None) -> Split:
    """A split by its annotation file and the folder of the images, which is searched for if it is not given."""
    names = [one.file_name for one in read_coco(file).images]
    prefix = f"{_below(root, folder)}/" if folder else _coco_folder(root, file, names)
    settings = dict(type="mmdet.CocoDataset", data_prefix=dict(img=prefix))
    return Split(file, [normpath(prefix + name) for name in names], settings)


def _yolo_names(root: Path) -> Path | None:
    """The file that lists the classes of YOLO labels, as labelling tools export it."""
    return next((root / name for name in ("data.yaml", "data.yml", "classes.txt") if (root / name).is_file()), None)


def _yolo_splits(root: Path, lists: Path) -> dict[str, Split]:
    """The splits of text files in ``labels``, which are rewritten as COCO files in ``lists``.

    The images lie in ``images/train``, ``train/images`` or, without splits, ``images``.
    """
    if not importlib.util.find_spec("supervision"):
        raise DataError(f"{root} holds YOLO labels, which supervision reads: pip install supervision==0.31.2")
    import supervision
    import yaml

    folders = _split_folders(root, "{}/images")
    if not folders["train"].is_dir() or folders["train"] == root / "images":
        folders = _split_folders(root, "images/{}")
    names = _yolo_names(root)
    if names.suffix == ".txt":
        classes = [line.strip() for line in names.read_text().splitlines() if line.strip()]
        names = lists / "data.yaml"
        _write(names, yaml.safe_dump({"names": classes}))
    found = {}
    for split, folder in folders.items():
        parts = folder.relative_to(root).parts
        labels = root.joinpath(*("labels" if part == "images" else part for part in parts))
        try:
            data = supervision.DetectionDataset.from_yolo(str(folder), str(labels), str(names))
            for detections in data.annotations.values():
                detections.mask = None  # outlines: mmdet ignores those in several parts as crowds
            with replaced_when_done(lists / f"{split}.json") as temporary:
                data.as_coco(annotations_path=str(temporary))
        except (ValueError, IndexError, OSError) as error:
            raise DataError(f"the YOLO labels in {labels} cannot be read: {error}") from error
        found[split] = _coco_split(root, lists / f"{split}.json", folder)
    return found


def _coco_file(root: Path, split: str) -> Path | None:
    """Finds the annotation file of a split; COCO's own folder also holds captions and key points."""
    files = sorted((root / "annotations").glob(f"*{split}*.json"))
    files = [path for path in files if path.name.startswith("instances")] or files
    # COCO publishes 'test' without boxes
    files = [path for path in files if not path.name.startswith("image_info")]
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise DataError(f"which file in {root}/annotations is the {split} split: {names}? Keep one of them.")
    return files[0] if files else None


def _coco_folder(root: Path, ann_file: Path, names: list[str]) -> str:
    """Finds the folder, relative to ``root``, that holds the images of an annotation file.

    If several folders have files of these names (numbered images, or masks and depths beside ``images``), the one named
    after the split is chosen.
    """
    folders = [root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]
    found = {folder: sum(isfile(folder / name) for name in names[:20]) for folder in folders}
    if not any(found.values()):
        example = names[0] if names else f"any *{IMAGE_SUFFIXES[0]}"
        raise DataError(f"no folder below {root} holds the images of {ann_file.name}, such as {example}.")
    best: list[Path] = []
    for folder in folders:
        if found[folder] == max(found.values()) and not any(_same_images(folder, other, names) for other in best):
            best.append(folder)
    called = ann_file.stem.removeprefix("instances_")
    split = next(split for split in SPLITS if split in called)
    of_splits = [any(split in str(folder.relative_to(root)) for split in SPLITS) for folder in best]
    rules = [lambda name: name == called, lambda name: name == split]
    # such as train2017; if another folder holds all images, val_... may hold drawings of predictions
    if all(of_splits):
        rules.append(lambda name: split in name)
    if not any(of_splits):
        rules.append(lambda name: name == "images")
    for fits in rules:
        if len(best) > 1:
            best = [folder for folder in best if any(map(fits, folder.relative_to(root).parts))] or best
    if len(best) > 1:
        candidates = ", ".join(f"{folder.relative_to(root)}/" for folder in best)
        raise DataError(
            f"which folder of {root} holds the images of {ann_file.name}: {candidates}? All have files of these names; "
            f"call the right one {called}, or take the others out of {root}."
        )
    return f"{best[0].relative_to(root)}/"


def _same_images(folder: Path, other: Path, names: list[str]) -> bool:
    """Whether two folders are the same, or hold links to the same images."""
    pairs = [(folder / name, other / name) for name in names[:20]]
    return any(isfile(one) and isfile(two) and one.samefile(two) for one, two in pairs)


def _coco_classes(root: Path, train: dict) -> list[str]:
    """Names of the categories with training objects, in the order of the file, as ``CocoDataset`` requires.

    In exported files, categories without objects are often parents of others.
    """
    content = read_coco(root / train["ann_file"])
    used = {one.category_id for one in content.annotations}
    return [one.name for one in content.categories if one.id in used]
