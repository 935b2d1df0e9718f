"""Detection data of users: finds layout, splits and class names, and writes them into the config.

A config requests this with ``data_layout = 'auto'`` and a ``data_root`` (see ``configs/_base_/custom_data.py``). It is
filled with stock settings: the config that MMEngine saves in the work directory names every file and class, and runs
without this module.
"""

import importlib.util
import json
import random
from collections.abc import Callable, Sequence
from os.path import isfile, normpath
from pathlib import Path

from mmengine.config import Config

from mmnetaug.config import leaves
from mmnetaug.errors import DataError
from mmnetaug.files import replaced_when_done

from .check import iter_heads
from .coco import read_coco
from .report import layouts
from .voc import IMAGE_SUFFIXES, read_image_list, read_voc

SPLITS = ("train", "val", "test")
FOLDERS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}  # of labelling tools
ROBOFLOW = "_annotations.coco.json"  # beside the images
HELD_OUT = 0.1  # of the training images, to select checkpoints if there is no split for that


def fill_config(cfg: Config, data_root: str | Path | None = None) -> Config:
    """Sets the data root of a config and, if it requests that, finds layout, splits and classes.

    Args:
        cfg: A whole config, changed in place.
        data_root: Folder of the data; by default the config's own ``data_root``.

    Returns:
        The same config. If it had ``data_layout = 'auto'``, each data loader now reads its split, the evaluators fit
        the layout, and every head's ``num_classes`` is the number of classes. Without a split to select checkpoints by,
        a fixed tenth of the training images is held out for that: the lists of both parts are written to ``held_out``
        in the work directory. Lists of flat folders and annotations read from YOLO labels are written to ``lists``.

    Raises:
        DataError: No data, or no training or no validation split, or no class names below ``data_root``; or the package
            that reads YOLO labels is missing.
    """
    if data_root is not None:
        set_data_root(cfg, data_root)
    if cfg.get("data_layout") != "auto":
        return cfg
    root = Path(cfg.data_root)
    find_splits = {"voc": _voc_splits, "flat": _flat_splits, "coco": _coco_splits, "yolo": _yolo_splits}
    layout = find_layout(root)
    splits = find_splits[layout](root, Path(cfg.get("work_dir") or "work_dirs").resolve())
    layout, read_classes = ("voc", _voc_classes) if layout in ("voc", "flat") else ("coco", _coco_classes)
    classes = cfg.get("classes") or read_classes(root, splits["train"])
    if not classes:
        raise DataError(f"no image listed in {root / splits['train']['ann_file']} has an annotated object.")
    cfg.data_root = str(root)  # the same string as in the data sets, so that set_data_root can replace it
    set_classes(cfg, (classes,) if isinstance(classes, str) else classes)
    cfg.data_layout = layout
    for name, split in splits.items():
        for dataset in leaves(cfg[f"{name}_dataloader"].dataset) if cfg.get(f"{name}_dataloader") else ():
            for key, value in dict(split, data_root=str(root)).items():
                dataset[key] = value  # update() would merge nested dicts
    for name in ("val", "test"):
        if layout == "voc":
            # 11-point interpolation is only for VOC 2007, to compare with published results
            cfg[f"{name}_evaluator"] = dict(type="mmdet.VOCMetric", metric="mAP", eval_mode="area")
        else:
            ann_file = str(root / splits[name]["ann_file"])
            cfg[f"{name}_evaluator"] = dict(type="mmdet.CocoMetric", metric="bbox", ann_file=ann_file)
    return cfg


def set_classes(cfg: Config, classes: Sequence[str]) -> None:
    """Sets the class names of every data set of a config, and ``num_classes`` of every head.

    Raises:
        ValueError: The model's config has no ``num_classes``.
    """
    cfg.classes = tuple(classes)
    for name in SPLITS:
        for dataset in leaves(cfg[f"{name}_dataloader"].dataset) if cfg.get(f"{name}_dataloader") else ():
            dataset["metainfo"] = dict(classes=cfg.classes)
    heads = list(iter_heads(cfg.model))
    if not heads:
        raise ValueError("the model's config gives no num_classes in a head: write one, its value does not matter.")
    for head in heads:
        head["num_classes"] = len(cfg.classes)


def set_data_root(cfg: Config, data_root: str | Path) -> None:
    """Replaces the data root in every data set and evaluator of a config.

    MMEngine substitutes ``data_root`` while it reads the file, so overriding the variable later has no effect.

    Args:
        cfg: A whole config with a ``data_root``, changed in place.
        data_root: The new one.

    Raises:
        ValueError: The config has no data root, or no data set below it.
    """
    new = str(data_root).rstrip("/") or "/"
    old = cfg.get("data_root")
    if old is None:
        raise ValueError("the config has no data_root that could be replaced.")
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
        raise ValueError(f"no data set of the config lies below its data_root, {old}: set theirs with --cfg-options.")
    cfg.data_root = new


def find_layout(root: Path) -> str:
    """Detects the layout of the data below ``root``.

    Returns:
        ``'voc'`` or ``'coco'``; ``'flat'`` for XML files beside the images, ``'yolo'`` for text files in ``labels``.

    Raises:
        DataError: It is none of these, or both of the first two.
    """
    if not root.is_dir():
        raise DataError(
            f"no data: there is no folder {root}. Set it with --data-root, or data_root in the config.\n"
            f"{layouts('<data_root>')}"
        )
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


def _flat_splits(root: Path, work_dir: Path) -> dict[str, dict]:
    """Settings of the three data sets, of folders that hold XML files beside the images."""
    folders = _split_folders(root)
    names = {split: sorted(path.stem for path in folder.glob("*.xml")) for split, folder in folders.items()}
    if "val" not in names:
        names["train"], names["val"] = _hold_out(names["train"])
        folders["val"] = folders["train"]
    names.setdefault("test", names["val"])
    folders.setdefault("test", folders["val"])
    files = {split: work_dir / f"lists/{split}.txt" for split in SPLITS}
    for split, path in files.items():
        _write_list(path, names[split])
    return {
        split: dict(
            type="mmnetaug.VOCLayoutDataset",
            ann_file=str(files[split]),
            data_prefix=dict(sub_data_root=_below(root, folders[split])),
            img_subdir="",
            ann_subdir="",
        )
        for split in SPLITS
    }


def _write_list(path: Path, names: list[str]) -> None:
    with replaced_when_done(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names))


def _voc_splits(root: Path, work_dir: Path) -> dict[str, dict]:
    """Settings of the three data sets, from the lists in ``ImageSets/Main``."""
    folder = root / "ImageSets/Main"
    lists = {path.stem for path in folder.glob("*.txt")}
    # trainval contains val: train on it only if there is no val
    train = "train" if "train" in lists and ("val" in lists or "trainval" not in lists) else "trainval"
    measured = [name for name in ("val", "test") if name in lists]
    if train not in lists or not measured:
        missing = "val.txt or test.txt, images to measure on that are not trained on" if train in lists else "train.txt"
        raise DataError(f"{folder} has no {missing}.\n{layouts(root)}")
    files = {
        split: folder / f"{name}.txt" for split, name in zip(SPLITS, (train, measured[0], measured[-1]), strict=True)
    }
    ids = {path: read_image_list(path) for path in dict.fromkeys(files.values())}
    _check_disjoint({path: set(names) for path, names in ids.items()}, files)
    if "val" not in lists:
        kept, chosen = _hold_out(ids[files["train"]])
        files.update(train=work_dir / "held_out/train.txt", val=work_dir / "held_out/val.txt")
        _write_list(files["train"], kept)
        _write_list(files["val"], chosen)
    return {
        split: dict(type="mmnetaug.VOCLayoutDataset", ann_file=_below(root, path), data_prefix=dict(sub_data_root=""))
        for split, path in files.items()
    }


def _check_disjoint(images: dict[Path, set[str]], files: dict[str, Path]) -> None:
    """Checks that no training image is used for measuring."""
    for name in ("val", "test"):
        if both := images[files["train"]] & images[files[name]]:
            raise DataError(
                f"{len(both)} images are in both {files['train'].name} and {files[name].name} of {files[name].parent}, "
                f"such as {min(both)}: training images cannot be used for measuring."
            )


def _hold_out(images: list) -> tuple[list, list]:
    """Holds out a fixed part of the images; returns the rest and that part."""
    chosen = set(random.Random(0).sample(range(len(images)), max(1, round(HELD_OUT * len(images))) if images else 0))
    parts = [one for i, one in enumerate(images) if i not in chosen], [images[i] for i in sorted(chosen)]
    if not parts[0]:
        raise DataError(f"{len(images)} training images are too few to set some aside to choose checkpoints by.")
    return parts


def _below(root: Path, path: Path) -> str:
    """A path relative to ``root`` if it is below it, as data sets with that root expect it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _voc_classes(root: Path, train: dict) -> list[str]:
    """Class names of all training objects, sorted. Unreadable files are reported by the checks."""
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


def _coco_splits(root: Path, work_dir: Path) -> dict[str, dict]:
    """Settings of the three data sets, from the JSON files in ``annotations`` or beside the images."""
    beside = {split: folder / ROBOFLOW for split, folder in _split_folders(root).items()}
    if beside["train"].is_file():
        found = {split: path if (path := beside.get(split)) and path.is_file() else None for split in SPLITS}
        return _json_splits(root, work_dir, found, lambda path, names: f"{_below(root, path.parent)}/")
    files = {name: _coco_file(root, name) for name in SPLITS}
    for name in ("val", "test"):  # trainval is not for measuring
        files[name] = None if files[name] == files["train"] else files[name]
    if not files["train"] or not (files["val"] or files["test"]):
        missing = "*train*.json" if not files["train"] else "*val*.json or *test*.json"
        raise DataError(f"{root}/annotations has no {missing}.\n{layouts(root)}")
    return _json_splits(root, work_dir, files, lambda path, names: _coco_folder(root, path, names))


def _yolo_names(root: Path) -> Path | None:
    """The file that lists the classes of YOLO labels, as labelling tools export it."""
    return next((root / name for name in ("data.yaml", "data.yml", "classes.txt") if (root / name).is_file()), None)


def _yolo_splits(root: Path, work_dir: Path) -> dict[str, dict]:
    """Settings of the three data sets, from text files in ``labels``, which are rewritten as COCO files.

    The images lie in ``images/train``, ``train/images`` or, without splits, ``images``.
    """
    if not importlib.util.find_spec("supervision"):
        raise DataError(f"{root} holds YOLO labels, which supervision reads: pip install supervision==0.31.2")
    import supervision
    import yaml

    folders = _split_folders(root, "{}/images")
    if not folders["train"].is_dir() or folders["train"] == root / "images":
        folders = _split_folders(root, "images/{}")
    lists, names = work_dir / "lists", _yolo_names(root)
    if names.suffix == ".txt":
        classes = [line.strip() for line in names.read_text().splitlines() if line.strip()]
        names = lists / "data.yaml"
        with replaced_when_done(names) as temporary:
            temporary.write_text(yaml.safe_dump({"names": classes}))
    files: dict[str, Path | None] = dict.fromkeys(SPLITS)
    for split, folder in folders.items():
        parts = folder.relative_to(root).parts
        labels = root.joinpath(*("labels" if part == "images" else part for part in parts))
        files[split] = lists / f"{split}.json"
        try:
            data = supervision.DetectionDataset.from_yolo(str(folder), str(labels), str(names))
            for detections in data.annotations.values():
                detections.mask = None  # outlines: mmdet ignores those in several parts as crowds
            with replaced_when_done(files[split]) as temporary:
                data.as_coco(annotations_path=str(temporary))
        except (ValueError, IndexError, OSError) as error:
            raise DataError(f"the YOLO labels in {labels} cannot be read: {error}") from error
    return _json_splits(root, work_dir, files, lambda path, _: f"{_below(root, folders[path.stem])}/")


def _json_splits(
    root: Path, work_dir: Path, files: dict[str, Path | None], folder_of: Callable[[Path, list[str]], str]
) -> dict[str, dict]:
    """Settings of the three data sets, from their annotation files.

    Args:
        root: Folder of the data.
        work_dir: Where the files of held out images go.
        files: By split; ``train`` is needed.
        folder_of: Finds the folder of the images, relative to ``root``, by file and names of images.
    """
    has_val = files["val"] is not None
    given = [path for path in dict.fromkeys(files.values()) if path]
    images = {path: [one.file_name for one in read_coco(path).images] for path in given}
    found = {path: folder_of(path, names) for path, names in images.items()}
    files["val"], files["test"] = files["val"] or files["test"], files["test"] or files["val"]
    folders = {split: found.get(path) for split, path in files.items()}
    paths = {path: {normpath(found[path] + name) for name in names} for path, names in images.items()}
    if files["val"]:
        _check_disjoint(paths, files)
    if not has_val:
        content = json.loads(files["train"].read_text())
        for split, part in zip(("train", "val"), _hold_out(content["images"]), strict=True):
            ids = {one["id"] for one in part}
            of_part = [one for one in content["annotations"] if one["image_id"] in ids]
            files[split], folders[split] = work_dir / f"held_out/{split}.json", folders["train"]
            with replaced_when_done(files[split]) as temporary:
                temporary.write_text(json.dumps({**content, "images": part, "annotations": of_part}))
        files["test"], folders["test"] = files["test"] or files["val"], folders["test"] or folders["val"]
    return {
        split: dict(type="mmdet.CocoDataset", ann_file=_below(root, path), data_prefix=dict(img=folders[split]))
        for split, path in files.items()
    }


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
