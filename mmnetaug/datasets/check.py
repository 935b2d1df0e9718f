"""Checks of the data before the first iteration: is it there, can it be read, do its classes match the config.

Everything that is wrong is found first and told in one :class:`DataError`; what training copes with (a box without
area, an object of an unknown class) is counted in a warning. Understands mmdet's data sets in VOC and COCO layout,
classification data sets of mmpretrain, and the wrappers around them; of any other data set it checks that it loads
and that its images can be read.
"""

import json
import random
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mmdet.datasets import CocoDataset, VOCDataset, XMLDataset
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmnetaug.registry import as_list, type_name
from mmnetaug.terminal import Progress, few

from .classification import few_images, find_faults
from .voc import VOCLayoutDataset

DECODE_ALL_UP_TO = 2000  # images; of larger sets, a sample of half as many is decoded
OPEN_ALL_UP_TO = 300_000  # files; of larger sets (ImageNet), that sample alone is looked at
NOT_HEADS = ("backbone", "neck", "data_preprocessor", "rpn_head", "teacher")  # parts with classes of their own, or none
THREADS = 4  # Pillow decodes without holding the interpreter's lock

VOC_LAYOUT = """    {root}/
        JPEGImages/          the images
        Annotations/         one XML file per image
        ImageSets/Main/      train.txt and val.txt or test.txt: one image name per line, without suffix"""
COCO_LAYOUT = """    {root}/
        annotations/         instances_train*.json and instances_val*.json
        train*/, val*/       the images"""
VOC_SOURCE = """Pascal VOC 2007 and 2012 come from http://host.robots.ox.ac.uk/pascal/VOC/ : unpack
VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar, so that there are VOC2007/ and
VOC2012/ in the folder VOCdevkit, each with JPEGImages/, Annotations/ and ImageSets/Main/."""
COCO_SOURCE = """COCO 2017 comes from https://cocodataset.org/#download : unpack train2017.zip, val2017.zip and
annotations_trainval2017.zip, so that there are train2017/, val2017/ and annotations/ in one folder."""
FOLDERS_LAYOUT = """Images to classify lie in one folder per class, the same folders for training and validation:
    <data_root>/train/<class name>/*.jpg
    <data_root>/val/<class name>/*.jpg"""


class DataError(ValueError):
    """The data cannot be trained or tested on; the message lists every reason found."""


def layouts(root: str | Path) -> str:
    """How to lay out detection data below ``root``, for error messages."""
    return (
        f"Detection data lies in one of two layouts. Pascal VOC:\n{VOC_LAYOUT.format(root=root)}\n"
        f"or COCO:\n{COCO_LAYOUT.format(root=root)}"
    )


@dataclass
class DatasetReport:
    """What was found in one data set.

    Attributes:
        name: What the config calls it, such as ``train``.
        classes: Class names in the order of their labels.
        images: Number of images.
        decoded: Number of images that were fully decoded by the check.
        objects: Objects (or images, in classification) of each class found in the annotations.
        listed: Class names that the annotation file lists, with objects or without (COCO layout).
        labels: Labels of images whose classes have no names.
        problems: What keeps it from being used.
        warnings: What training copes with.
        hint: What to do when the data are not there.
    """

    name: str
    classes: tuple[str, ...] = ()
    images: int = 0
    decoded: int = 0
    objects: Counter = field(default_factory=Counter)
    listed: set[str] = field(default_factory=set)
    labels: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    hint: str = ""

    def __str__(self) -> str:
        line = f"{self.name}: {self.images} images ({self.decoded} decoded)"
        if self.objects:
            shown = [f"{name} {count}" for name, count in self.objects.most_common(8)]
            more = ", ..." if len(self.objects) > 8 else ""
            line += f", {sum(self.objects.values())} labels of {len(self.objects)} classes ({', '.join(shown)}{more})"
        return "\n".join([line, *(f"  warning: {text}" for text in self.warnings)])


def check_data(cfg: Config, splits: Sequence[str] = ("train", "val")) -> list[DatasetReport]:
    """Check the data sets of a config, and that they, their evaluators and the model's head agree.

    Args:
        cfg: A whole config.
        splits: Which of ``<split>_dataloader`` to check; one that the config does not have, or that reads the same
            data as an earlier one, is passed over.

    Returns:
        One report per data set checked.

    Raises:
        DataError: With all problems of all data sets.
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
            if evaluator.get("ann_file") and not Path(evaluator["ann_file"]).is_file():
                report.problems.append(f"the ann_file of {split}_evaluator is absent: {evaluator['ann_file']}")
        reports.append(report)
    for other in reports[1:]:
        if other.classes and reports[0].classes and other.classes != reports[0].classes:
            other.problems.append(
                f"its classes are not those of {reports[0].name}, in the same order: "
                f"{few(other.classes)} against {few(reports[0].classes)}"
            )
    expected = head_num_classes(cfg.get("model") or {})
    if reports and reports[0].classes and expected and len(reports[0].classes) not in expected:
        reports[0].problems.append(
            f"the model's head has num_classes={few(sorted(expected))}, the data {len(reports[0].classes)} classes"
        )
    for report in reports:
        beyond = sorted(label for label in report.labels if expected and not 0 <= label < max(expected))
        if beyond:
            report.problems.append(
                f"its labels go from 0 to num_classes - 1 = {max(expected) - 1}: {few(beyond)} do not"
            )
    _raise_problems(reports)
    return reports


def check_dataset(dataset: dict, name: str = "train") -> DatasetReport:
    """Check one data set; of more than 2000 images, a fixed sample of 1000 is decoded to the end.

    Args:
        dataset: Its config, wrappers included. Its ``type`` must be registered.
        name: Used in messages; a class without any object is an error in ``'train'`` and a warning elsewhere.

    Returns:
        What was found.

    Raises:
        DataError: With all problems.
    """
    report = _inspect(dataset, name)
    _find_absent_classes(report, name == "train")
    _raise_problems([report])
    return report


def head_num_classes(model: dict) -> set[int]:
    """Collect the ``num_classes`` of the heads in a model's config."""
    return {owner["num_classes"] for owner in iter_heads(model)}


def iter_heads(model: dict) -> Iterator[dict]:
    """Yield each part of a model's config that has a ``num_classes`` which follows the data."""
    if model.get("num_classes") is not None:
        yield model
    for key, value in model.items():
        if key in NOT_HEADS:
            continue
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, dict):
                yield from iter_heads(part)


def _raise_problems(reports: Iterable[DatasetReport]) -> None:
    bad = [report for report in reports if report.problems]
    if bad:
        parts = [f"{report.name} data: {problem}" for report in bad for problem in report.problems]
        hints = dict.fromkeys(report.hint for report in bad if report.hint)
        raise DataError("\n".join([*parts, *hints]))


def _inspect(dataset: dict, name: str, later_steps: Sequence = ()) -> DatasetReport:
    """Check one data set, going into wrappers, without raising; ``later_steps`` are the wrappers' pipelines."""
    steps = [*(dataset.get("pipeline") or ()), *later_steps]
    if dataset.get("datasets"):
        parts = [_inspect(part, f"{name}[{i}]", steps) for i, part in enumerate(dataset["datasets"])]
        return _merge(parts, name)
    if "dataset" in dataset:
        return _inspect(dataset["dataset"], name, steps)

    report = DatasetReport(name)
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = dataset["type"] if isinstance(dataset["type"], type) else registry.get(dataset["type"])
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, BaseDataset)):
        report.warnings.append(f"{dataset['type']} is none of MMEngine's data sets and was not checked")
        return report
    report.problems, report.hint = find_faults(kind.__name__ if kind else "", dataset)
    if report.problems:
        return report
    try:
        # Paths joined and class names resolved, but no annotation read yet: that would stop at the first fault.
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
        sizes = _inspect_voc(lazy, report, steps)
    elif isinstance(lazy, CocoDataset) and type(lazy).load_data_list is CocoDataset.load_data_list:
        sizes = _inspect_coco(lazy, report)
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
    merged = DatasetReport(name, parts[0].classes, hint=next((part.hint for part in parts if part.hint), ""))
    for part in parts:
        merged.images += part.images
        merged.decoded += part.decoded
        merged.objects += part.objects
        merged.listed |= part.listed
        merged.labels |= part.labels
        merged.problems += [f"{part.name}: {problem}" for problem in part.problems]
        merged.warnings += [f"{part.name}: {warning}" for warning in part.warnings]
    if any(part.classes != merged.classes for part in parts):
        merged.problems.append("its parts differ in their classes or the order of them")
    return merged


def _find_absent_classes(report: DatasetReport, needed: bool) -> None:
    """A class without any object is most often a misspelt name."""
    absent = [name for name in report.classes if not report.objects[name]]
    unknown = {name: n for name, n in report.objects.items() if name not in report.classes}
    if absent and report.objects:
        text = f"no annotation has the class {few(absent)}"
        if needed and set(absent) - report.listed:
            report.problems.append(f"{text}; the annotations have {few(sorted(report.objects), 100)}")
        else:
            report.warnings.append(text)
    if unknown:
        shown = few([f"{name} ({n})" for name, n in unknown.items()])
        report.warnings.append(f"{sum(unknown.values())} objects are of classes not in the config, and unused: {shown}")


# --- Pascal VOC layout ------------------------------------------------------------------------------------------------


def _drops_empty_boxes(dataset: XMLDataset, steps: Sequence) -> bool:
    """Whether boxes without area are kept from the loss."""
    if isinstance(dataset, VOCLayoutDataset) or dataset.test_mode or (dataset.bbox_min_size or 0) >= 1:
        return True
    return _has_step(steps, "FilterAnnotations")


def _has_step(steps: Sequence, name: str) -> bool:
    return any(type_name(step) == name for step in steps)


def _inspect_voc(dataset: XMLDataset, report: DatasetReport, steps: Sequence) -> dict[str, tuple | None]:
    """Read all XML files; returns ``image path: (width, height) or None``."""
    root = Path(dataset.sub_data_root)
    images, annotations = root / dataset.img_subdir, root / dataset.ann_subdir
    wanted = {"list of images": dataset.ann_file, "images": images, "annotations": annotations}
    absent = [f"{what} {path}" for what, path in wanted.items() if not Path(path).exists()]
    if absent:
        report.problems.append(f"not there: {'; '.join(absent)}")
        report.hint = VOC_SOURCE if type(dataset) is VOCDataset else layouts(dataset.data_root or "<data_root>")
        return {}
    if not report.classes:
        report.problems.append("no class names given (metainfo=dict(classes=(...)))")
    if dataset.bbox_min_size and not dataset.test_mode and _has_step(steps, "TrainOnDifficult"):
        report.problems.append(  # mmdet sets difficult and small objects apart by one and the same flag
            "filter_cfg.bbox_min_size would have no effect, because TrainOnDifficult has all objects trained on: leave "
            "small ones out by a FilterAnnotations behind it, or take it out of the pipeline"
        )

    names = dataset.image_names() if isinstance(dataset, VOCLayoutDataset) else {}
    sizes, no_xml, broken, empty, outside = {}, [], [], [], []
    for image_id in list_from_file(dataset.ann_file):
        image, xml = str(images / names.get(image_id, f"{image_id}.jpg")), annotations / f"{image_id}.xml"
        sizes[image] = None
        if not xml.is_file():
            no_xml.append(xml.name)
            continue
        try:
            size, boxes = _read_xml(xml)
        except (ET.ParseError, AttributeError, TypeError, ValueError) as error:
            broken.append(f"{xml.name} ({error})")
            continue
        sizes[image] = size
        for name, (x1, y1, x2, y2) in boxes:
            report.objects[name] += 1
            if x2 <= x1 or y2 <= y1:
                empty.append(f"{xml.name} {name} [{x1}, {y1}, {x2}, {y2}]")
            elif size and (x1 < 0 or y1 < 0 or x2 > size[0] or y2 > size[1]):
                outside.append(f"{xml.name} {name} [{x1}, {y1}, {x2}, {y2}] in {size[0]}x{size[1]}")
    if no_xml:
        report.problems.append(f"{len(no_xml)} listed images have no annotation file: {few(no_xml)}")
    if broken:
        report.problems.append(f"{len(broken)} annotation files cannot be read: {few(broken)}")
    if empty and not _drops_empty_boxes(dataset, steps):
        report.problems.append(
            f"{len(empty)} boxes without area would reach the loss, put dict(type='FilterAnnotations', "
            f"min_gt_bbox_wh=(1, 1)) behind LoadAnnotations: {few(empty)}"
        )
        empty = []
    _note_boxes(report, empty, outside)
    if sizes and not report.objects and not dataset.test_mode and not report.problems:
        report.problems.append("no object is annotated in it")
    return sizes


def _read_xml(path: Path) -> tuple[tuple[int, int] | None, list]:
    """Read image size and objects of one XML file, as ``XMLDataset`` does."""
    root = ET.parse(path).getroot()
    size = root.find("size")
    if size is not None:
        size = int(size.find("width").text), int(size.find("height").text)
    boxes = []
    for item in root.findall("object"):
        name, box = item.find("name").text, item.find("bndbox")
        if not name:
            raise ValueError("an object without a name")
        boxes.append((name, [int(float(box.find(key).text)) for key in ("xmin", "ymin", "xmax", "ymax")]))
    return size, boxes


# --- COCO layout ------------------------------------------------------------------------------------------------------


def _inspect_coco(dataset: CocoDataset, report: DatasetReport) -> dict[str, tuple | None]:
    """Read the JSON file; returns ``image path: (width, height)``."""
    folder, ann_file = Path(dataset.data_prefix["img"]), Path(dataset.ann_file)
    absent = [f"{what} {path}" for what, path in (("annotations", ann_file), ("images", folder)) if not path.exists()]
    if absent:
        report.problems.append(f"not there: {'; '.join(absent)}")
        is_coco = report.classes == CocoDataset.METAINFO["classes"]
        report.hint = COCO_SOURCE if is_coco else layouts(dataset.data_root or "<data_root>")
        return {}
    try:
        content = json.loads(ann_file.read_text())
        categories = {one["id"]: one["name"] for one in content["categories"]}
        images = {one["id"]: one for one in content["images"]}
        sizes = {str(folder / one["file_name"]): (one["width"], one["height"]) for one in content["images"]}
        annotations = content["annotations"]
    except (ValueError, KeyError, TypeError) as error:
        report.problems.append(f"{ann_file} is not a COCO annotation file: {type(error).__name__} {error}")
        return {}

    report.listed = set(categories.values())
    # CocoDataset numbers the classes in the order of the file, whatever the order in the config.
    order = [name for name in categories.values() if name in report.classes]
    if repeated := [name for name, count in Counter(order).items() if count > 1]:
        numbers = [f"{name} has {[i for i, n in categories.items() if n == name]}" for name in repeated]
        report.problems.append(
            f"categories of {ann_file.name} share a name, which makes several classes of one: {few(numbers)}. Take the "
            "ones without objects out of the file, or rename them"
        )
    elif set(order) != set(report.classes):
        lost = [name for name in report.classes if name not in order]
        report.problems.append(
            f"no category of {ann_file.name} is called {few(lost)}; it has {few(categories.values())}"
        )
    elif tuple(order) != report.classes:
        report.problems.append(f"the classes must be listed in the order of {ann_file.name}: {few(order, 100)}")

    empty, outside, incomplete, orphans = [], [], [], []
    for one in annotations:
        label = f"annotation {one.get('id')}"
        numbers = [one.get("area"), *(one.get("bbox") or ())]
        if not {"iscrowd", "category_id", "image_id", "id"} <= one.keys() or not (
            len(numbers) == 5 and all(isinstance(number, int | float) for number in numbers)
        ):
            incomplete.append(label)
            continue
        if one["image_id"] not in images or one["category_id"] not in categories:
            orphans.append(label)
            continue
        name, image, (x, y, w, h) = categories[one["category_id"]], images[one["image_id"]], one["bbox"]
        report.objects[name] += 1
        if w < 1 or h < 1 or one["area"] <= 0:  # what CocoDataset leaves out
            empty.append(f"{label} {name} {one['bbox']}")
        elif x < -1 or y < -1 or x + w > image["width"] + 1 or y + h > image["height"] + 1:
            outside.append(f"{label} {name} {one['bbox']} in {image['width']}x{image['height']}")
    if incomplete:
        report.problems.append(f"{len(incomplete)} annotations lack bbox, area, iscrowd or an id: {few(incomplete)}")
    if orphans:
        report.problems.append(f"{len(orphans)} annotations are of no listed image or category: {few(orphans)}")
    _note_boxes(report, empty, outside)
    if sizes and not report.objects and not dataset.test_mode and not report.problems:
        report.problems.append("no object is annotated in it")
    return sizes


def _note_boxes(report: DatasetReport, empty: list[str], outside: list[str]) -> None:
    if empty:
        report.warnings.append(f"{len(empty)} boxes have no area, training leaves them out: {few(empty)}")
    if outside:
        report.warnings.append(f"{len(outside)} boxes reach beyond their image: {few(outside)}")


# --- any other data set -----------------------------------------------------------------------------------------------


def _inspect_loaded(dataset: BaseDataset, report: DatasetReport) -> dict[str, None]:
    """Load the data set and see whether that works; returns ``image path: None`` where images are files."""
    if not report.hint:
        images = hasattr(dataset, "get_gt_labels")
        report.hint = FOLDERS_LAYOUT if images else layouts(dataset.data_root or "<data_root>")
    try:
        dataset.full_init()
    except (OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AssertionError) as error:
        report.problems.append(f"{type(dataset).__name__} cannot be loaded: {error}")
        return {}
    report.classes = tuple(dataset.metainfo.get("classes") or ())
    sizes, beyond = {}, []
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
        report.problems.append(f"{len(beyond)} labels are not below {len(report.classes)} classes: {few(beyond)}")
    report.images = len(dataset)
    return sizes


# --- images -----------------------------------------------------------------------------------------------------------


def _check_images(sizes: dict[str, tuple | None], report: DatasetReport) -> None:
    """Check that images exist and can be decoded, and that their size is the annotated one."""
    chosen = set(sizes)
    if len(sizes) > DECODE_ALL_UP_TO:
        chosen = set(random.Random(0).sample(sorted(sizes), DECODE_ALL_UP_TO // 2))
        if len(sizes) > OPEN_ALL_UP_TO:
            sizes = {path: sizes[path] for path in chosen}

    def check(path: str) -> tuple[str, tuple | str | None]:
        """An image's size, None where it was not decoded, or what is wrong with it."""
        try:
            if path in chosen or not _ends_properly(path):
                return path, _decode(path)
            return path, None
        except FileNotFoundError:
            return path, "absent"
        except Exception as error:  # damaged files make Pillow raise errors of many kinds
            return path, str(error).replace(f" {path!r}", "") or type(error).__name__

    absent, damaged, resized = [], [], []
    with ThreadPoolExecutor(THREADS) as pool:
        progress = Progress(f"checking the {report.name} images", len(sizes))
        for path, found in pool.map(check, sizes):
            progress.step()
            if found == "absent":
                absent.append(path)
            elif isinstance(found, str):
                damaged.append(f"{path} ({found})")
            elif found is not None:
                report.decoded += 1
                if sizes[path] is not None and found != tuple(sizes[path]):
                    resized.append(f"{path} ({found[0]}x{found[1]}, annotated {sizes[path][0]}x{sizes[path][1]})")
    if absent:
        report.problems.append(f"{len(absent)} annotated images are absent: {few(absent)}")
    if damaged:
        report.problems.append(
            f"{len(damaged)} images are damaged, restore them or take them off the list: {few(damaged)}"
        )
    if resized:
        report.warnings.append(f"{len(resized)} images are not of the annotated size: {few(resized)}")


def _ends_properly(path: str) -> bool:
    """Whether a JPEG or PNG file ends with its end mark: a cheap test that finds files cut short."""
    with open(path, "rb") as file:
        head = file.read(2)
        file.seek(0, 2)
        file.seek(max(file.tell() - 12, 0))
        tail = file.read()
    return (head == b"\xff\xd8" and tail.endswith(b"\xff\xd9")) or (head == b"\x89P" and b"IEND" in tail)


def _decode(path: str) -> tuple[int, int]:
    """Decode an image to the end, which OpenCV does not insist on; returns width and height as loaded for training."""
    with Image.open(path) as image:
        image.load()
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation: OpenCV turns the image when loading it
        return image.size[::-1] if turned else image.size
