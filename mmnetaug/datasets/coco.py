"""Decodes COCO annotation files into typed structs, and finds what mmdet would fail at or ignore."""

from __future__ import annotations

import os.path as osp
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from mmdet.datasets import CocoDataset

from mmnetaug.errors import DataError
from mmnetaug.layouts import layouts
from mmnetaug.terminal import abbreviate

from .once import kept
from .report import COCO_SOURCE, DatasetReport

MAX_COORDINATE = 1e6  # larger than any image, and float32 still resolves single pixels
Id = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]  # pycocotools keeps ids as float64
Pixels = Annotated[int, msgspec.Meta(ge=1, le=int(MAX_COORDINATE))]
Coordinate = Annotated[float, msgspec.Meta(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]


class CocoImage(msgspec.Struct, gc=False):
    """An entry of ``images``."""

    id: Id
    file_name: str
    width: Pixels
    height: Pixels


class CocoCategory(msgspec.Struct, gc=False):
    """An entry of ``categories``."""

    id: Id
    name: str


class CocoAnnotation(msgspec.Struct, gc=False):
    """An entry of ``annotations``; ``bbox`` is left, top, width and height."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[Coordinate, Coordinate, Coordinate, Coordinate]
    area: float
    iscrowd: bool | int  # optional in mmdet's training, required by pycocotools
    ignore: bool | int | None = None


class CocoFile(msgspec.Struct):
    """The parts of an annotation file that mmdet reads."""

    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation]


_decoder = msgspec.json.Decoder(CocoFile)


@kept
def read_coco(path: str | Path) -> CocoFile:
    """Decodes an annotation file.

    Raises:
        DataError: It cannot be read, or a value is missing or of the wrong type; the message says where.
    """
    try:
        # as text, like pycocotools: msgspec skips unknown fields without checking their encoding
        return _decoder.decode(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a COCO annotation file: {error}") from error


def inspect_coco(dataset: CocoDataset, report: DatasetReport) -> dict[str, tuple[int, int] | None]:
    """Checks the annotation file of a data set.

    Args:
        dataset: Built, but not loaded.
        report: To be filled in.

    Returns:
        ``image path: (width, height)``.
    """
    folder, ann_file = dataset.data_prefix["img"], Path(dataset.ann_file)
    wanted = {"annotations": ann_file, "images": Path(folder)}
    absent = [f"{what} {path}" for what, path in wanted.items() if not path.exists()]
    if absent:
        report.problems.append(f"not there: {'; '.join(absent)}")
        is_coco = report.classes == CocoDataset.METAINFO["classes"]
        report.hint = COCO_SOURCE if is_coco else layouts(dataset.data_root or "<data_root>")
        return {}
    try:
        content = read_coco(ann_file)
    except DataError as error:
        report.problems.append(str(error))
        return {}
    report.images = len(content.images)
    for kind in ("images", "categories", "annotations"):
        if repeated := _repeated([one.id for one in getattr(content, kind)]):
            report.problems.append(
                f"{len(repeated)} ids of {kind} are given more than once in {ann_file.name}: {abbreviate(repeated)}"
            )
    _check_categories(content.categories, ann_file.name, report)
    paths = [osp.join(folder, image.file_name) for image in content.images]
    report.warn("images are listed more than once", _repeated(paths))
    _check_annotations(content, paths, dataset, report)
    return {path: (image.width, image.height) for path, image in zip(paths, content.images, strict=True)}


def _repeated(values: Sequence) -> list:
    """Values that occur more than once."""
    if len(set(values)) == len(values):
        return []
    return [value for value, count in Counter(values).items() if count > 1]


def _check_categories(categories: list[CocoCategory], file: str, report: DatasetReport) -> None:
    report.listed = {one.name for one in categories}
    # CocoDataset numbers the classes in the order of the file, not of the config.
    order = [one.name for one in categories if one.name in report.classes]
    if repeated := _repeated(order):
        numbers = [f"{name} has {[one.id for one in categories if one.name == name]}" for name in repeated]
        report.problems.append(
            f"categories of {file} share a name, which makes several classes of one: {abbreviate(numbers)}. Take the "
            "ones without objects out of the file, or rename them"
        )
    elif set(order) != set(report.classes):
        lost = [name for name in report.classes if name not in order]
        names = abbreviate(one.name for one in categories)
        report.problems.append(f"no category of {file} is called {abbreviate(lost)}; it has {names}")
    elif tuple(order) != report.classes:
        report.problems.append(f"the classes must be listed in the order of {file}: {abbreviate(order, 100)}")


def _check_annotations(content: CocoFile, paths: list[str], dataset: CocoDataset, report: DatasetReport) -> None:
    """Counts the objects of each class, and those that CocoDataset ignores by its own rules."""
    annotations, names = content.annotations, [one.name for one in content.categories]
    images = {one.id: i for i, one in enumerate(content.images)}
    categories = {one.id: i for i, one in enumerate(content.categories)}
    count = len(annotations)

    def column(name: str) -> Iterator:  # no Python loop, since there may be a million annotations
        return map(attrgetter(name), annotations)

    image = np.fromiter(map(images.get, column("image_id"), repeat(-1)), np.int64, count)
    label = np.fromiter(map(categories.get, column("category_id"), repeat(-1)), np.int64, count)

    def shown(mask: np.ndarray) -> list[str]:
        found = [(annotations[i], names[label[i]], content.images[image[i]]) for i in np.flatnonzero(mask)]
        return [f"annotation {one.id} {name} {list(one.bbox)} in {of.width}x{of.height}" for one, name, of in found]

    orphans = (image < 0) | (label < 0)
    if orphans.any():
        ids = [f"annotation {annotations[i].id}" for i in np.flatnonzero(orphans)]
        report.problems.append(f"{len(ids)} annotations are of no listed image or category: {abbreviate(ids)}")
        return
    x, y, w, h = np.fromiter(chain.from_iterable(column("bbox")), float, 4 * count).reshape(-1, 4).T
    area = np.fromiter(column("area"), float, count)
    sizes = np.array([(one.width, one.height) for one in content.images], float).reshape(-1, 2)
    width, height = sizes[image].T
    across, down = np.minimum(x + w, width) - np.maximum(x, 0), np.minimum(y + h, height) - np.maximum(y, 0)
    unused = np.fromiter(map(bool, column("ignore")), bool, count)
    empty = ~unused & ((w < 1) | (h < 1) | (area <= 0))
    outside = ~unused & ~empty & (np.maximum(across, 0) * np.maximum(down, 0) == 0)
    used = ~(unused | empty | outside)
    beyond = used & ((x < -1) | (y < -1) | (x + w > width + 1) | (y + h > height + 1))
    of_class = np.array([name in report.classes for name in names], bool)[label]
    with_objects, listed = np.zeros((2, len(sizes)), bool)
    with_objects[image[used & of_class]] = True
    listed[image[of_class]] = True
    report.without_objects = int((~with_objects).sum())
    report.objects.update({names[i]: int(n) for i, n in enumerate(np.bincount(label[used])) if n})
    report.warn("objects are marked with ignore, training leaves them out", shown(unused))
    report.warn("boxes have no area, training leaves them out", shown(empty))
    report.warn("boxes lie outside of their image, training leaves them out", shown(outside))
    report.warn("boxes reach beyond their image", shown(beyond))
    if dataset.test_mode:
        zero = [one.id for one in annotations if one.id == 0]
        report.warn("annotations have the id 0, which pycocotools counts as missed: number them from 1", zero)
    elif report.images and not report.objects:
        report.problems.append("no object is annotated in it, or none has an area")
    if dataset.filter_cfg and not dataset.test_mode:
        left_out = sizes.min(1) < dataset.filter_cfg.get("min_size", 0)
        if dataset.filter_cfg.get("filter_empty_gt", False):
            left_out |= ~listed  # ignored objects count here
        report.leave_out([paths[i] for i in np.flatnonzero(left_out)])
