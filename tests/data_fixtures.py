"""Tiny data sets in the exact layouts of the real ones, drawn by code, to test and try configs without a download::

python tests/data_fixtures.py KIND OUT  # kinds: see MAKERS
"""

from __future__ import annotations

import argparse
import colorsys
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from mmpretrain.datasets.categories import (
    CUB_CATEGORIES,
    FOOD101_CATEGORIES,
    STANFORDCARS_CATEGORIES,
    OxfordIIITPet_CATEGORIES,
)
from numpy.lib.recfunctions import repack_fields
from scipy.io import savemat

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
# COCO numbers its categories from 1 to 90 and left these out
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]

VOC_XML = """<annotation>
	<folder>{folder}</folder>
	<filename>{name}{suffix}</filename>
	<source>
		<database>The {folder} Database</database>
		<annotation>PASCAL {folder}</annotation>
		<image>flickr</image>
	</source>
	<size>
		<width>{width}</width>
		<height>{height}</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
{objects}</annotation>
"""
VOC_OBJECT = """	<object>
		<name>{name}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>{difficult}</difficult>
		<bndbox>
			<xmin>{x1}</xmin>
			<ymin>{y1}</ymin>
			<xmax>{x2}</xmax>
			<ymax>{y2}</ymax>
		</bndbox>
	</object>
"""

Box = tuple[int, int, int, int]


def draw_image(path: Path, labels: list[int], classes: int, rng: np.random.Generator, size=(128, 96)) -> list[Box]:
    """Write an image with one ellipse per label, its colour telling the class.

    Returns:
        Boxes ``x1, y1, x2, y2`` in pixels, x2 and y2 exclusive.
    """
    width, height = size
    image = rng.integers(90, 160, (height, width, 3)).astype(np.uint8)
    boxes = []
    for label in labels:
        w, h = (int(rng.integers(side // 4, side // 2)) for side in size)
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        colour = [255 * c for c in colorsys.hsv_to_rgb(label / classes, 1, 1)]
        cv2.ellipse(image, (x + w // 2, y + h // 2), (w // 2, h // 2), 0, 0, 360, colour, -1)
        boxes.append((x, y, x + w, y + h))
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return boxes


def write_voc_xml(path: Path, objects: list[tuple[str, Box]], size=(128, 96), suffix=".jpg", folder="VOC2007") -> None:
    """Write one annotation; VOC counts pixels from 1 and includes the last."""
    text = "".join(
        VOC_OBJECT.format(name=name, difficult=0, x1=x1 + 1, y1=y1 + 1, x2=x2, y2=y2)
        for name, (x1, y1, x2, y2) in objects
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        VOC_XML.format(folder=folder, name=path.stem, suffix=suffix, width=size[0], height=size[1], objects=text)
    )


def make_voc_folder(
    root: Path,
    splits: dict[str, int],
    classes=("cat", "dog", "emu"),
    suffix=".jpg",
    first_id=1,
    seed=0,
    folder="VOC2007",
) -> Path:
    """Write one folder in VOC layout: two objects per image, of all classes in turn.

    Args:
        root: Folder to write to.
        splits: Images per list in ``ImageSets/Main``; each list has images of its own.
        classes: Class names.
        suffix: Of the images.
        first_id: The number of the first image.
        seed: Of the drawings.
        folder: What the annotations call it.

    Returns:
        ``root``.
    """
    rng = np.random.default_rng(seed)
    number, turn = first_id, 0
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, count in splits.items():
        names = [f"{number + i:06d}" for i in range(count)]
        number += count
        for name in names:
            labels = [(turn + i) % len(classes) for i in range(2)]
            turn += 2
            boxes = draw_image(root / f"JPEGImages/{name}{suffix}", labels, len(classes), rng)
            objects = [(classes[label], box) for label, box in zip(labels, boxes, strict=True)]
            write_voc_xml(root / f"Annotations/{name}.xml", objects, suffix=suffix, folder=folder)
        write_list(root, split, names)
    return root


def make_flat_voc(root: Path, splits: dict[str, int]) -> Path:
    """Write XML files beside their images, as LabelImg does; each split in a folder, or all in one called ``""``."""
    for seed, (split, count) in enumerate(splits.items()):
        voc = make_voc_folder(root / "voc", dict(all=count), seed=seed, first_id=100 * seed)
        (root / split).mkdir(exist_ok=True)
        for path in [*voc.glob("JPEGImages/*"), *voc.glob("Annotations/*")]:
            path.rename(root / split / path.name)
        shutil.rmtree(voc)
    return root


def make_roboflow(root: Path, splits: dict[str, int]) -> Path:
    """Write COCO files beside their images, as Roboflow does: numbers start at 0, with a category for the project."""
    for seed, (split, count) in enumerate(splits.items()):
        coco = make_coco(root / "coco", {split: count}, ("cat", "dog"), (1, 2), per_image=2, seed=seed)
        (coco / split).rename(root / split)
        content = json.loads((coco / f"annotations/instances_{split}.json").read_text())
        content["categories"].insert(0, dict(id=0, name="animals", supercategory="none"))
        for number, annotation in enumerate(content["annotations"]):
            annotation.update(id=number, iscrowd=0)
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
        shutil.rmtree(coco)
    return root


def make_yolo(root: Path, splits: dict[str, int], images="images/{}", labels="labels/{}", names="data.yaml") -> dict:
    """Write YOLO's text labels: class, centre and size, relative to the image; the last image of a split has none.

    Returns:
        By name of the image, its labels and boxes ``x1, y1, x2, y2`` in pixels.
    """
    rng, classes, drawn = np.random.default_rng(0), ("cat", "dog", "emu"), {}
    for split, count in splits.items():
        for number in range(count):
            chosen = [number % 3, (number + 1) % 3] if number < count - 1 else []
            name = f"{split}{number}.jpg"
            boxes = draw_image(root / images.format(split) / name, chosen, 3, rng)
            drawn[name] = chosen, boxes
            lines = [
                f"{label} {(x1 + x2) / 256:.6f} {(y1 + y2) / 192:.6f} {(x2 - x1) / 128:.6f} {(y2 - y1) / 96:.6f}\n"
                for label, (x1, y1, x2, y2) in zip(chosen, boxes, strict=True)
            ]
            path = root / labels.format(split) / f"{split}{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            if lines:
                path.write_text("".join(lines))
    listed = f"names: {list(classes)}\nnc: 3\n" if names.endswith("yaml") else "".join(f"{one}\n" for one in classes)
    (root / names).write_text(listed)
    return drawn


def write_list(root: Path, split: str, names: list[str]) -> None:
    """Write ``ImageSets/Main/<split>.txt``."""
    (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))


def read_list(root: Path, split: str) -> list[str]:
    """Read ``ImageSets/Main/<split>.txt``."""
    return (root / f"ImageSets/Main/{split}.txt").read_text().split()


def make_voc_devkit(root: Path, train=6, val=6, test=10) -> Path:
    """Write ``VOCdevkit`` with VOC2007 (train, val, trainval, test) and VOC2012 (train, val, trainval); returns it."""
    devkit = root / "VOCdevkit"
    for year, splits in (("2007", dict(train=train, val=val, test=test)), ("2012", dict(train=train, val=val))):
        folder = devkit / f"VOC{year}"
        make_voc_folder(folder, splits, VOC_CLASSES, seed=int(year), folder=f"VOC{year}")
        write_list(folder, "trainval", read_list(folder, "train") + read_list(folder, "val"))
        if year == "2012":  # named like 2008_000002 there
            _rename_ids(folder, "2008_")
    return devkit


def _rename_ids(folder: Path, prefix: str) -> None:
    for path in [*folder.glob("JPEGImages/*"), *folder.glob("Annotations/*")]:
        path.rename(path.with_name(prefix + path.name))
    for path in folder.glob("ImageSets/Main/*.txt"):
        path.write_text("".join(f"{prefix}{name}\n" for name in path.read_text().split()))


def make_coco(
    root: Path, splits: dict[str, int] | None = None, classes=COCO_CLASSES, ids=COCO_IDS, per_image=8, seed=0
) -> Path:
    """Write COCO 2017's layout: ``annotations/instances_<split>.json`` and the images in ``<split>/``; returns root.

    The last image has no object, and the first object of the first image is a crowd.
    """
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    number, turn = 0, 0
    for split, count in (splits or {"train2017": 11, "val2017": 6}).items():
        images, annotations = [], []
        for i in range(count):
            number += 1
            name = f"{number:012d}.jpg"
            labels = [(turn + k) % len(classes) for k in range(per_image if i < count - 1 else 0)]
            turn += len(labels)
            boxes = draw_image(root / split / name, labels, len(classes), rng)
            images.append(dict(license=1, file_name=name, coco_url="", height=96, width=128, id=number))
            for label, (x1, y1, x2, y2) in zip(labels, boxes, strict=True):
                crowd = not annotations
                annotations.append(
                    dict(
                        segmentation=dict(counts=[0, 96 * 128], size=[96, 128])
                        if crowd
                        else [[x1, y1, x2, y1, x2, y2, x1, y2]],
                        area=float((x2 - x1) * (y2 - y1)),
                        iscrowd=int(crowd),
                        image_id=number,
                        bbox=[float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                        category_id=ids[label],
                        id=number * 1000 + len(annotations),
                    )
                )
        content = dict(
            info=dict(description="COCO 2017 Dataset", version="1.0", year=2017),
            licenses=[dict(id=1, name="", url="")],
            images=images,
            annotations=annotations,
            categories=[dict(supercategory="thing", id=ids[i], name=name) for i, name in enumerate(classes)],
        )
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def make_class_folders(root: Path, classes=("cat", "dog"), train=4, val=2, seed=0) -> Path:
    """Write images to classify: ``{train,val}/<class>/*.jpg``; returns ``root``."""
    rng = np.random.default_rng(seed)
    for split, count in dict(train=train, val=val).items():
        for label, name in enumerate(classes):
            for i in range(count):
                draw_image(root / split / name / f"{i:03d}.jpg", [label], len(classes), rng, size=(64, 64))
    return root


def write_image(path: Path, seed: int = 0) -> None:
    """Write a small JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    path.write_bytes(cv2.imencode(".jpg", image)[1].tobytes())


def make_synset_folders(root: Path, splits=("train", "val"), classes=1000) -> Path:
    """Write ImageNet's layout: ``<split>/<synset>/<name>.JPEG``, one and the same image per class; returns root."""
    jpeg = root / "image.jpg"
    write_image(jpeg)
    for split in splits:
        for i in range(classes):
            synset = f"n{1440764 + 37 * i:08d}"
            folder = root / split / synset
            folder.mkdir(parents=True)
            name = f"{synset}_{i}.JPEG" if "train" in split else f"ILSVRC2012_val_{i + 1:08d}.JPEG"
            (folder / name).hardlink_to(jpeg)
    return root


def make_imagenet21k(root: Path) -> Path:
    """Write the layout of ImageNet-21K-P as it is distributed; returns root."""
    return make_synset_folders(root, ("imagenet21k_train", "imagenet21k_val"), 10450)


def make_food101(root: Path) -> Path:
    """Write Food-101's layout, one image per class and split; returns root."""
    (root / "meta").mkdir(parents=True)
    for number, split in enumerate(("train", "test")):
        names = [f"{name}/{1000000 + 2 * i + number}" for i, name in enumerate(FOOD101_CATEGORIES)]
        for i, name in enumerate(names):
            write_image(root / f"images/{name}.jpg", i)
        (root / f"meta/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "meta/classes.txt").write_text("".join(f"{name}\n" for name in FOOD101_CATEGORIES))
    return root


def make_flowers102(root: Path) -> Path:
    """Write the layout of Oxford 102 Flowers, one image per class in each of train, val and test; returns root."""
    numbers = np.arange(1, 3 * 102 + 1)
    for number in numbers:
        write_image(root / f"jpg/image_{number:05d}.jpg", number)
    savemat(root / "imagelabels.mat", dict(labels=((numbers - 1) % 102 + 1).astype(np.uint8)[None]))
    parts = numbers.astype(np.uint16).reshape(3, 1, -1)
    savemat(root / "setid.mat", dict(trnid=parts[0], valid=parts[1], tstid=parts[2]))
    return root


def make_cars(root: Path) -> Path:
    """Write the layout of Stanford Cars with its devkit, one image per class and split; returns root."""
    (root / "devkit").mkdir(parents=True)
    corners = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"]
    for split, file in (("train", "cars_train_annos"), ("test", "cars_test_annos_withlabels")):
        rows = np.zeros((1, 196), dtype=[(name, object) for name in [*corners, "class", "fname"]])
        for i in range(196):
            write_image(root / f"cars_{split}/{i + 1:05d}.jpg", i)
            rows[0, i] = (*(np.uint8([[side]]) for side in (2, 2, 30, 20)), np.uint8([[i + 1]]), f"{i + 1:05d}.jpg")
        savemat(root / f"devkit/{file}.mat", dict(annotations=rows))
    savemat(root / "devkit/cars_test_annos.mat", dict(annotations=repack_fields(rows[[*corners, "fname"]])))
    names = np.array([STANFORDCARS_CATEGORIES], dtype=object)
    savemat(root / "devkit/cars_meta.mat", dict(class_names=names))
    return root


def make_cub200(root: Path) -> Path:
    """Write the layout of CUB-200-2011, one image per class and split; returns root."""
    lines: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split", "classes")}
    for label, name in enumerate(CUB_CATEGORIES, 1):
        folder = f"{label:03d}.{name}"
        lines["classes"].append(f"{label} {folder}")
        for is_train in (0, 1):
            number = 2 * label - 1 + is_train
            write_image(root / f"images/{folder}/{name}_{number:04d}_{700000 + number}.jpg", number)
            lines["images"].append(f"{number} {folder}/{name}_{number:04d}_{700000 + number}.jpg")
            lines["image_class_labels"].append(f"{number} {label}")
            lines["train_test_split"].append(f"{number} {is_train}")
    for name, rows in lines.items():
        (root / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows))
    return root


def make_pets(root: Path) -> Path:
    """Write the layout of Oxford-IIIT Pets, one image per class and split; returns root."""
    (root / "annotations").mkdir(parents=True)
    cats = ("Abyssinian", "Bengal", "Birman")
    for offset, split in enumerate(("trainval", "test")):
        rows = []
        for i, name in enumerate(OxfordIIITPet_CATEGORIES):
            write_image(root / f"images/{name}_{offset + 1}.jpg", i)
            rows.append(f"{name}_{offset + 1} {i + 1} {1 if name in cats else 2} {i + 1}")
        (root / f"annotations/{split}.txt").write_text("".join(f"{row}\n" for row in rows))
    return root


MAKERS = {
    "folder": lambda out: make_voc_folder(out, dict(train=8, test=4)),
    "flat": lambda out: make_flat_voc(out, {"": 8}),
    "roboflow": lambda out: make_roboflow(out, dict(train=8, valid=4)),
    "yolo": lambda out: make_yolo(out, dict(train=8, val=4)),
    "voc": make_voc_devkit,
    "coco": make_coco,
    "classes": make_class_folders,
    "imagenet": make_synset_folders,
    "imagenet21k": make_imagenet21k,
    "food101": make_food101,
    "flowers102": make_flowers102,
    "cars": make_cars,
    "cub200": make_cub200,
    "pets": make_pets,
}


def main() -> None:
    """Write one of the data sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=MAKERS)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    print(MAKERS[args.kind](args.out))


if __name__ == "__main__":
    main()
