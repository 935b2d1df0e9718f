"""Checks the data before the first iteration: are they there, can they be read, do the classes match the config.

All problems are collected and reported in one :class:`DataError`; what training can handle (a box without area, an
object of an unknown class) is counted in a warning. VOC and COCO layouts of mmdet, classification data sets of
mmpretrain and dataset wrappers are checked in full; of any other data set, that it loads and its images can be read.
"""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from mmdet.datasets import CocoDataset, XMLDataset
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmnetaug.config import SPLITS, as_list, iter_heads, split_leaves, type_name
from mmnetaug.errors import DataError
from mmnetaug.layouts import layouts
from mmnetaug.terminal import abbreviate, progress

from .classification import few_images, find_faults
from .coco import inspect_coco, read_coco
from .report import DatasetReport
from .voc import IMAGE_SUFFIXES, VOCLayoutDataset, inspect_voc, read_image_list

DECODE_ALL_UP_TO = 2000  # images; of larger sets, a sample of half that number is decoded
OPEN_ALL_UP_TO = 300_000  # files; of larger sets (ImageNet), only that sample is opened
THREADS = 4  # Pillow releases the GIL while it decodes
TOGETHER = 64  # files per task of a thread: single files would cost more to hand over than to check

FOLDERS_LAYOUT = """Images to classify lie in one folder per class, the same folders for training and validation:
    <data_root>/train/<class name>/*.jpg
    <data_root>/val/<class name>/*.jpg"""


def check_data(cfg: Config, splits: Sequence[str] = ("train", "val")) -> list[DatasetReport]:
    """Checks the data sets of a config, and that they, their evaluators and the model's head agree.

    Of more than 2000 images, a fixed sample of 1000 is decoded.

    Args:
        cfg: A whole config.
        splits: Which of ``<split>_dataloader`` to check; missing ones, and those that read the same data as an earlier
            one, are skipped.

    Returns:
        One report per data set checked.

    Raises:
        DataError: There are problems; the message lists those of all data sets.
    """
    init_default_scope(cfg.get("default_scope") or "mmdet")
    reports, seen = [], []
    for split in splits:
        dataset = (cfg.get(f"{split}_dataloader") or {}).get("dataset")
        if dataset is None or dataset in seen:
            continue
        seen.append(dataset)
        report = _inspect(dataset, split)
        _find_absent_classes(report, split == "train")
        for evaluator in as_list(cfg.get(f"{split}_evaluator")):
            if fault := _find_evaluator_fault(evaluator, dataset):
                report.problems.append(f"the ann_file of {split}_evaluator {fault}")
        reports.append(report)
    for other in reports[1:]:
        if other.classes and reports[0].classes and other.classes != reports[0].classes:
            other.problems.append(
                f"its classes are not those of {reports[0].name}, in the same order: "
                f"{abbreviate(other.classes)} against {abbreviate(reports[0].classes)}"
            )
    expected = {head["num_classes"] for head in iter_heads(cfg.get("model") or {})}
    if reports and reports[0].classes and expected and len(reports[0].classes) not in expected:
        reports[0].problems.append(
            f"the model's head has num_classes={abbreviate(sorted(expected))}, "
            f"the data {len(reports[0].classes)} classes"
        )
    for report in reports:
        beyond = sorted(label for label in report.labels if expected and not 0 <= label < max(expected))
        if beyond:
            report.problems.append(
                f"its labels go from 0 to num_classes - 1 = {max(expected) - 1}: {abbreviate(beyond)} do not"
            )
    if bad := [report for report in reports if report.problems]:
        parts = [f"{report.name} data: {problem}" for report in bad for problem in report.problems]
        hints = dict.fromkeys(report.hint for report in bad if report.hint)
        raise DataError("\n".join([*parts, *hints]))
    return reports


def find_unlisted(cfg: Config) -> list[str]:
    """Looks for images beside those of the data that no split lists; returns a line for each folder that has some.

    Only for data whose splits :func:`fill_config` has found: published data sets have such images on purpose.

    Args:
        cfg: A whole config, whose data were checked.
    """
    if cfg.get("data_layout") in (None, "auto"):
        return []
    init_default_scope(cfg.get("default_scope") or "mmdet")
    listed: dict[str, set[str]] = {}
    for leaf in chain.from_iterable(split_leaves(cfg, split) for split in SPLITS):
        dataset = DATASETS.build({**leaf, "lazy_init": True, "pipeline": []})
        if isinstance(dataset, VOCLayoutDataset):
            folder, files = os.path.join(dataset.sub_data_root, dataset.img_subdir), dataset.image_names()
            names = {files.get(name, name) for name in read_image_list(dataset.ann_file)}
        else:
            folder = dataset.data_prefix["img"]
            names = {one.file_name for one in read_coco(dataset.ann_file).images}
        listed.setdefault(os.path.normpath(folder), set()).update(names)
    lines = []
    for folder, names in listed.items():
        images = {name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES)}
        if unused := sorted(images - names):
            lines.append(f"{len(unused)} images in {folder} are in no list and unused: {abbreviate(unused)}")
    return lines


def _find_evaluator_fault(evaluator: dict, dataset: dict) -> str | None:
    """Checks the annotation file of an evaluator, unless it is that of the data set; returns the problem."""
    path = evaluator.get("ann_file")
    if path and not Path(path).is_file():
        return f"is absent: {path}"
    own = Path(dataset.get("data_root") or "", dataset.get("ann_file") or "")
    if path and type_name(evaluator) == "CocoMetric" and not (own.is_file() and own.samefile(path)):
        try:
            read_coco(path)
        except DataError as error:
            return f"cannot be used: {error}"
    return None


def _inspect(dataset: dict, name: str, later_steps: Sequence = ()) -> DatasetReport:
    """Checks a data set, also inside of wrappers, without raising; ``later_steps`` are the wrappers' pipelines."""
    steps = [*(dataset.get("pipeline") or ()), *later_steps]
    if dataset.get("datasets"):
        parts = [_inspect(part, f"{name}[{i}]", steps) for i, part in enumerate(dataset["datasets"])]
        return _merge(parts, name)
    if "dataset" in dataset:
        return _inspect(dataset["dataset"], name, steps)

    report = DatasetReport(name, source=dataset.get("ann_file") or "")
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = dataset["type"] if isinstance(dataset["type"], type) else registry.get(dataset["type"])
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, BaseDataset)):
        report.warnings.append(f"{dataset['type']} is none of MMEngine's data sets and was not checked")
        return report
    report.problems, report.hint = find_faults(kind.__name__ if kind else "", dataset)
    if report.problems:
        return report
    try:
        # This joins paths and resolves class names without reading annotations, which would stop at the first fault.
        lazy = DATASETS.build({**dataset, "lazy_init": True, "pipeline": []})
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
        report.problems.append(f"{dataset['type']} cannot be set up: {error}")
        return report
    classes = lazy.metainfo.get("classes") or ()
    if isinstance(classes, str):
        report.problems.append(f"its classes are the text {classes!r} instead of a list: write ({classes!r},)")
        return report
    report.classes = tuple(classes)
    if isinstance(lazy, XMLDataset) and type(lazy).load_data_list in (
        XMLDataset.load_data_list,
        VOCLayoutDataset.load_data_list,
    ):
        sizes = inspect_voc(lazy, report, steps)
    elif isinstance(lazy, CocoDataset) and type(lazy).load_data_list is CocoDataset.load_data_list:
        sizes = inspect_coco(lazy, report)
    else:
        sizes = _inspect_loaded(lazy, report)
    report.images = report.images or len(sizes)
    if not report.images and not report.problems:
        report.problems.append(f"no image in it ({lazy.ann_file or lazy.data_prefix})")
    if not report.problems and (warning := few_images(type(lazy).__name__, dataset, report.images)):
        report.warnings.append(warning)
    _check_images(sizes, report)
    return report


def _merge(parts: list[DatasetReport], name: str) -> DatasetReport:
    sources = ", ".join(part.source for part in parts if part.source)
    merged = DatasetReport(name, sources, parts[0].classes, hint=next((part.hint for part in parts if part.hint), ""))
    for part in parts:
        merged.images += part.images
        merged.decoded += part.decoded
        merged.without_objects += part.without_objects
        merged.objects += part.objects
        merged.listed |= part.listed
        merged.labels |= part.labels
        merged.problems += [f"{part.name}: {problem}" for problem in part.problems]
        merged.warnings += [f"{part.name}: {warning}" for warning in part.warnings]
    if any(part.classes != merged.classes for part in parts):
        merged.problems.append("its parts differ in their classes or the order of them")
    return merged


def _find_absent_classes(report: DatasetReport, needed: bool) -> None:
    """Reports classes without objects, which are often misspelt names."""
    absent = [name for name in report.classes if not report.objects[name]]
    unknown = {name: n for name, n in report.objects.items() if name not in report.classes}
    if absent and report.objects:
        text = f"no annotation has the class {abbreviate(absent)}"
        if needed and set(absent) - report.listed:
            report.problems.append(f"{text}; the annotations have {abbreviate(sorted(report.objects), 100)}")
        else:
            report.warnings.append(text)
    if unknown:
        shown = abbreviate([f"{name} ({n})" for name, n in unknown.items()])
        report.warnings.append(f"{sum(unknown.values())} objects are of classes not in the config, and unused: {shown}")


# --- any other data set -----------------------------------------------------------------------------------------------


def _inspect_loaded(dataset: BaseDataset, report: DatasetReport) -> dict[str, tuple[int, int] | None]:
    """Loads a data set and checks its labels; returns ``image path: None`` for images that are files."""
    if not report.hint:
        images = hasattr(dataset, "get_gt_labels")
        report.hint = FOLDERS_LAYOUT if images else layouts(dataset.data_root or "<data_root>")
    try:
        dataset.full_init()
    except (OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AssertionError) as error:
        report.problems.append(f"{type(dataset).__name__} cannot be loaded: {error}")
        return {}
    report.classes = tuple(dataset.metainfo.get("classes") or ())
    sizes: dict[str, tuple[int, int] | None] = {}
    beyond = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if isinstance(info.get("img_path"), str):
            sizes[info["img_path"]] = None
        label = info.get("gt_label")
        if isinstance(label, int) and not report.classes:
            report.labels.add(label)
        elif isinstance(label, int):
            if not 0 <= label < len(report.classes):
                beyond.append(f"{info.get('img_path', index)} ({label})")
            else:
                report.objects[report.classes[label]] += 1
    if beyond:
        report.problems.append(
            f"{len(beyond)} labels are not below {len(report.classes)} classes: {abbreviate(beyond)}"
        )
    report.images = len(dataset)
    return sizes


# --- images -----------------------------------------------------------------------------------------------------------


def _check_images(sizes: dict[str, tuple | None], report: DatasetReport) -> None:
    """Checks that images exist, can be decoded and have the annotated size."""
    chosen = set(sizes)
    if len(sizes) > DECODE_ALL_UP_TO:
        chosen = set(random.Random(0).sample(sorted(sizes), DECODE_ALL_UP_TO // 2))
        if len(sizes) > OPEN_ALL_UP_TO:
            sizes = {path: sizes[path] for path in chosen}

    def check(path: str) -> tuple[str, tuple | str | None]:
        """The size of an image, None if it was not decoded, or its problem."""
        try:
            if path in chosen or not _ends_properly(path):
                return path, _decode(path)
            return path, None
        except FileNotFoundError:
            return path, "absent"
        except Exception as error:  # Pillow raises many kinds of errors for damaged files
            return path, str(error).replace(f" {path!r}", "") or type(error).__name__

    absent, damaged, resized = [], [], []
    with ThreadPoolExecutor(THREADS) as pool, progress(f"checking the {report.name} images", len(sizes)) as bar:
        paths = list(sizes)
        parts = [paths[i : i + TOGETHER] for i in range(0, len(paths), TOGETHER)]
        for path, found in chain.from_iterable(pool.map(lambda part: list(map(check, part)), parts)):
            bar.update()
            if found == "absent":
                absent.append(path)
            elif isinstance(found, str):
                damaged.append(f"{path} ({found})")
            elif found is not None:
                report.decoded += 1
                if sizes[path] is not None and found != tuple(sizes[path]):
                    resized.append(f"{path} ({found[0]}x{found[1]}, annotated {sizes[path][0]}x{sizes[path][1]})")
    if absent:
        report.problems.append(f"{len(absent)} annotated images are absent: {abbreviate(absent)}")
    if damaged:
        report.problems.append(
            f"{len(damaged)} images are damaged, restore them or take them off the list: {abbreviate(damaged)}"
        )
    if resized:
        report.warnings.append(f"{len(resized)} images are not of the annotated size: {abbreviate(resized)}")


def _ends_properly(path: str) -> bool:
    """Whether a JPEG or PNG file ends with its end marker: a cheap test for truncated files."""
    with open(path, "rb", buffering=0) as file:
        head = file.read(2)
        file.seek(max(os.fstat(file.fileno()).st_size - 12, 0))
        tail = file.read()
    return (head == b"\xff\xd8" and tail.endswith(b"\xff\xd9")) or (head == b"\x89P" and b"IEND" in tail)


def _decode(path: str) -> tuple[int, int]:
    """Decodes a whole image, as OpenCV may not; returns width and height as loaded for training."""
    with Image.open(path) as image:
        size = image.size
        image.draft(None, (1, 1))  # all data of a JPEG are read, but only an eighth of its rows and columns computed
        image.load()
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation: OpenCV turns the image when loading it
        return size[::-1] if turned else size
