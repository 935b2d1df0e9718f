"""Detection data in Pascal VOC layout: the data set, a typed reader of annotation files, and their check."""

from __future__ import annotations

import os
import os.path as osp
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from xml.etree.ElementTree import Element, ParseError

import msgspec
from defusedxml import ElementTree
from mmcv.transforms import BaseTransform
from mmdet.datasets import VOCDataset, XMLDataset
from mmengine.fileio import list_from_file
from msgspec import UNSET, UnsetType

from mmnetaug.config import type_name
from mmnetaug.errors import DataError
from mmnetaug.layouts import layouts
from mmnetaug.registry import DATASETS, TRANSFORMS
from mmnetaug.terminal import abbreviate

from .coco import MAX_COORDINATE
from .once import kept
from .report import VOC_SOURCE, DatasetReport

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@DATASETS.register_module()
class VOCLayoutDataset(XMLDataset):
    """``XMLDataset`` that finds images of any suffix and drops boxes without area.

    The stock class looks for ``<id>.jpg`` only, and keeps boxes with ``xmax <= xmin`` or ``ymax <= ymin``, for which
    the logarithm of the size makes the loss infinite. The arguments are those of ``XMLDataset``; it needs
    ``data_prefix=dict(sub_data_root='')`` to read below ``data_root``, and ``metainfo=dict(classes=...)``.
    """

    def load_data_list(self) -> list[dict]:
        """Loads the annotations of every id in ``ann_file``; see ``XMLDataset``."""
        self._names = self.image_names()
        return super().load_data_list()

    def image_names(self) -> dict[str, str]:
        """File names of the images, by stem."""
        names = sorted(os.listdir(osp.join(self.sub_data_root, self.img_subdir)))
        return {osp.splitext(name)[0]: name for name in names if name.lower().endswith(IMAGE_SUFFIXES)}

    def parse_data_info(self, img_info: dict) -> dict:
        """Parses one XML file, with the actual file name of the image and without boxes that have no area."""
        name = self._names.get(img_info["img_id"])
        if name is not None:
            img_info = {**img_info, "file_name": osp.join(self.img_subdir, name)}
        info = super().parse_data_info(img_info)
        boxes = [(one, *one["bbox"]) for one in info["instances"]]
        info["instances"] = [one for one, left, top, right, bottom in boxes if right > left and bottom > top]
        return info


@TRANSFORMS.register_module()
class TrainOnDifficult(BaseTransform):
    """Trains on objects that Pascal VOC marks as difficult, as GluonCV does.

    mmdet marks them as ignored, but its YOLOv3 loss does not support ignored boxes and treats them as background. To be
    placed after ``LoadAnnotations`` in training pipelines; evaluation still ignores such objects. COCO's crowd boxes
    stay ignored.
    """

    def transform(self, results: dict) -> dict:
        """Clears ``gt_ignore_flags`` (n,) of data from XML files."""
        if "xml_path" in results:
            results["gt_ignore_flags"][:] = False
        return results


# --- annotation files -------------------------------------------------------------------------------------------------


class Whole(int):
    """A size or flag, parsed from text as mmdet does."""

    def __new__(cls, text: str) -> Whole:
        value = super().__new__(cls, text)
        if not 0 <= value <= MAX_COORDINATE:
            raise ValueError(f"expected a number from 0 to {MAX_COORDINATE:.0f}, got {text.strip()}")
        return value


class Pixel(int):
    """A coordinate, parsed from text as mmdet does."""

    def __new__(cls, text: str) -> Pixel:
        if not abs(float(text)) <= MAX_COORDINATE:  # rejects NaN, too
            raise ValueError(f"expected a coordinate of at most {MAX_COORDINATE:.0f}, got {text.strip()}")
        return super().__new__(cls, float(text))


class VOCSize(msgspec.Struct):
    """The annotated image size; 0 in files of some tools."""

    width: Whole
    height: Whole


class VOCBox(msgspec.Struct):
    """Corners, counted from 1; the last pixel is included."""

    xmin: Pixel
    ymin: Pixel
    xmax: Pixel
    ymax: Pixel


class VOCObject(msgspec.Struct):
    """One ``object``."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    bndbox: VOCBox
    difficult: Whole | UnsetType = UNSET


class VOCFile(msgspec.Struct):
    """The parts of an annotation file that mmdet reads."""

    size: VOCSize | UnsetType = UNSET
    object: list[VOCObject] = []


@kept
def read_voc(path: str | Path) -> VOCFile:
    """Reads an annotation file.

    Raises:
        DataError: It cannot be read, or a value is missing or of the wrong type; the message says where.
    """
    try:
        root = ElementTree.parse(path).getroot()
        content = {**_children(root), "object": [_content(item) for item in root.findall("object")]}
        return msgspec.convert(content, VOCFile, dec_hook=lambda kind, text: kind(text))
    # LookupError: an unknown encoding
    except (OSError, ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _content(element: Element) -> dict | str:
    return _children(element) if len(element) else element.text or ""


def _children(element: Element) -> dict:
    """Contents of the children by name; the first of several with the same name, as in mmdet."""
    return {child.tag: _content(child) for child in reversed(element)}


def read_image_list(path: str | Path) -> list[str]:
    """Reads the names of images from a file in ``ImageSets/Main``.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return list_from_file(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a list of images: {error}") from error


def inspect_voc(dataset: XMLDataset, report: DatasetReport, steps: Sequence) -> dict[str, tuple[int, int] | None]:
    """Checks the list of images of a data set and all their annotation files.

    Args:
        dataset: Built, but not loaded.
        report: To be filled in.
        steps: The transforms of its pipeline.

    Returns:
        ``image path: (width, height)``, or None if no size is annotated.
    """
    root = Path(dataset.sub_data_root)
    images, annotations = root / dataset.img_subdir, root / dataset.ann_subdir
    folders = {"images": images, "annotations": annotations}
    absent = [] if Path(dataset.ann_file).is_file() else [f"list of images {dataset.ann_file}"]
    absent += [f"{what} {path}" for what, path in folders.items() if not path.is_dir()]
    if absent:
        report.problems.append(f"not there: {'; '.join(absent)}")
        report.hint = VOC_SOURCE if type(dataset) is VOCDataset else layouts(dataset.data_root or "<data_root>")
        return {}
    if not report.classes:
        report.problems.append("no class names given (metainfo=dict(classes=(...)))")
    if dataset.bbox_min_size and not dataset.test_mode and _has_step(steps, "TrainOnDifficult"):
        report.problems.append(  # mmdet marks difficult and small objects by the same flag
            "filter_cfg.bbox_min_size would have no effect, because TrainOnDifficult has all objects trained on: leave "
            "small ones out by a FilterAnnotations behind it, or take it out of the pipeline"
        )
    try:
        ids = read_image_list(dataset.ann_file)
    except DataError as error:
        report.problems.append(str(error))
        return {}

    names = dataset.image_names() if isinstance(dataset, VOCLayoutDataset) else {}
    filter_cfg = {} if dataset.test_mode else dataset.filter_cfg or {}
    sizes: dict[str, tuple[int, int] | None] = {}
    no_xml, broken, empty, outside, beyond, filtered = [], [], [], [], [], []
    for image_id in ids:
        image, xml = str(images / names.get(image_id, f"{image_id}.jpg")), annotations / f"{image_id}.xml"
        sizes[image] = None
        if not xml.is_file():
            no_xml.append(xml.name)
            continue
        try:
            content = read_voc(xml)
        except DataError as error:
            broken.append(str(error))
            continue
        if content.size:
            sizes[image] = content.size.width, content.size.height
        width, height = sizes[image] or (0, 0)
        loaded = 0
        for item in content.object:
            box = item.bndbox
            shown = f"{xml.name} {item.name} [{box.xmin}, {box.ymin}, {box.xmax}, {box.ymax}]"
            has_area = box.xmax > box.xmin and box.ymax > box.ymin
            loaded += item.name in report.classes and (has_area or not isinstance(dataset, VOCLayoutDataset))
            if not has_area:
                empty.append(shown)
                continue
            if width and height:
                if box.xmax <= 1 or box.ymax <= 1 or box.xmin > width or box.ymin > height:
                    outside.append(f"{shown} in {width}x{height}")
                    continue
                if box.xmin < 0 or box.ymin < 0 or box.xmax > width or box.ymax > height:
                    beyond.append(f"{shown} in {width}x{height}")
            report.objects[item.name] += 1
        report.without_objects += not loaded
        too_small = content.size and min(width, height) < filter_cfg.get("min_size", 0)
        if too_small or (not loaded and filter_cfg.get("filter_empty_gt")):
            filtered.append(image)
    report.images = len(ids)
    if no_xml:
        report.problems.append(f"{len(no_xml)} listed images have no annotation file: {abbreviate(no_xml)}")
    if broken:
        report.problems.append(f"{len(broken)} annotation files cannot be read: {abbreviate(broken)}")
    is_filtered = dataset.test_mode or _has_step(steps, "FilterAnnotations")
    drops_empty = is_filtered or isinstance(dataset, VOCLayoutDataset) or (dataset.bbox_min_size or 0) >= 1
    if lost := (not drops_empty) * empty + (not is_filtered) * outside:
        report.problems.append(
            f"{len(lost)} boxes without area, or none within the annotated size of their image, would reach the loss, "
            f"put dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)) behind the last Resize: {abbreviate(lost)}"
        )
    report.warn("boxes have no area, training leaves them out", drops_empty * empty)
    report.warn("boxes lie outside of their image, training leaves them out", is_filtered * outside)
    report.warn("boxes reach beyond their image", beyond)
    report.warn("images are listed more than once", [name for name, count in Counter(ids).items() if count > 1])
    report.leave_out(filtered)
    if ids and not report.objects and not dataset.test_mode and not report.problems:
        report.problems.append("no object is annotated in it, or none has an area")
    return sizes


def _has_step(steps: Sequence, name: str) -> bool:
    return any(type_name(step) == name for step in steps)
