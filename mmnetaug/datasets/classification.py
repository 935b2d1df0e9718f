"""The published classification data sets that mmpretrain reads: their sources and layouts, and a check of their files.

mmpretrain's classes stop at the first fault with the error that it happens to cause; these are found beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mat4py


class Layout(NamedTuple):
    """A published data set.

    Attributes:
        source: Where it comes from and how to lay it out.
        files: Files and folders below ``data_root`` that each split needs.
        images: Number of images of each split.
        variables: Variables that each .mat file must hold, with their fields.
    """

    source: str
    files: Mapping[str, tuple[str, ...]]
    images: Mapping[str, int]
    variables: Mapping[str, Mapping[str, tuple[str, ...]]] = {}


LAYOUTS = {
    "ImageNet": Layout(
        """ImageNet-1k (ILSVRC 2012) comes from https://image-net.org/download : unpack ILSVRC2012_img_train.tar and
each archive in it, and sort the images of ILSVRC2012_img_val.tar into folders of the same names, so that there are
    {root}/train/n01440764/*.JPEG, ... and {root}/val/n01440764/*.JPEG, ... : 1000 folders each.""",
        dict(train=("train",), val=("val",)),
        dict(train=1281167, val=50000),
    ),
    "ImageNet21k": Layout(
        """ImageNet-21K-P of winter 2021 comes from https://github.com/Alibaba-MIIL/ImageNet21K
(imagenet21k_resized.tar.gz): unpack it, so that there are 10450 folders each in
    {root}/imagenet21k_train/n00005787/*.JPEG, ... and {root}/imagenet21k_val/n00005787/*.JPEG, ...""",
        dict(imagenet21k_train=("imagenet21k_train",), imagenet21k_val=("imagenet21k_val",)),
        dict(imagenet21k_train=11060223, imagenet21k_val=522500),
    ),
    "Food101": Layout(
        """Food-101 comes from https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/ : unpack food-101.tar.gz, so
that there are {root}/images/apple_pie/*.jpg, ... and {root}/meta/train.txt and test.txt.""",
        dict(train=("images", "meta/train.txt"), test=("images", "meta/test.txt")),
        dict(train=75750, test=25250),
    ),
    "Flowers102": Layout(
        """Oxford 102 Flowers comes from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ : unpack 102flowers.tgz and
put imagelabels.mat and setid.mat beside, so that there are {root}/jpg/image_00001.jpg, ...,
{root}/imagelabels.mat and {root}/setid.mat.""",
        dict.fromkeys(("trainval", "test"), ("jpg", "imagelabels.mat", "setid.mat")),
        dict(trainval=2040, test=6149),
        {"imagelabels.mat": dict(labels=()), "setid.mat": dict(trnid=(), valid=(), tstid=())},
    ),
    "StanfordCars": Layout(
        """Stanford Cars (https://ai.stanford.edu/~jkrause/cars/car_dataset.html) consists of cars_train.tgz,
cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat: unpack them, so that there are
    {root}/cars_train/00001.jpg, ..., {root}/cars_test/00001.jpg, ...,
    {root}/devkit/cars_train_annos.mat and {root}/devkit/cars_test_annos_withlabels.mat.""",
        dict(
            train=("cars_train", "devkit/cars_train_annos.mat"),
            test=("cars_test", "devkit/cars_test_annos_withlabels.mat"),
        ),
        dict(train=8144, test=8041),
        {
            f"devkit/cars_{name}.mat": dict(annotations=("fname", "class"))
            for name in ("train_annos", "test_annos_withlabels")
        },
    ),
    "CUB": Layout(
        """CUB-200-2011 comes from https://www.vision.caltech.edu/datasets/cub_200_2011/ : unpack CUB_200_2011.tgz, so
that there are {root}/images/001.Black_footed_Albatross/*.jpg, ..., {root}/images.txt,
{root}/image_class_labels.txt and {root}/train_test_split.txt.""",
        dict.fromkeys(("train", "test"), ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt")),
        dict(train=5994, test=5794),
    ),
    "OxfordIIITPet": Layout(
        """Oxford-IIIT Pets comes from https://www.robots.ox.ac.uk/~vgg/data/pets/ : unpack images.tar.gz and
annotations.tar.gz, so that there are {root}/images/Abyssinian_1.jpg, ..., {root}/annotations/trainval.txt and
test.txt.""",
        dict(trainval=("images", "annotations/trainval.txt"), test=("images", "annotations/test.txt")),
        dict(trainval=3680, test=3669),
    ),
}


def find_faults(kind: str, dataset: Mapping[str, Any]) -> tuple[list[str], str]:
    """Checks that the files of a published data set are below its ``data_root``.

    Args:
        kind: Name of mmpretrain's class.
        dataset: Its config.

    Returns:
        The problems, and where the data set comes from; an empty list and "" for unknown sets.
    """
    layout, split = LAYOUTS.get(kind), _split(kind, dataset)
    if layout is None or split not in layout.files or dataset.get("ann_file"):
        return [], ""
    root = Path(dataset.get("data_root", ""))
    source = layout.source.format(root=root)
    files = layout.files[split]
    if kind == "StanfordCars" and (root / "cars_annos.mat").is_file():  # the other layout that mmpretrain reads
        files = ("car_ims", "cars_annos.mat")
    if absent := [name for name in files if not (root / name).exists()]:
        return [f"not there: {', '.join(str(root / name) for name in absent)}"], source
    faults = [fault for name in files for fault in _mat_faults(root / name, layout.variables.get(name, {}))]
    return faults, source


def few_images(kind: str, dataset: Mapping[str, Any], images: int) -> str | None:
    """A warning if a data set has fewer images than published, or None."""
    layout = LAYOUTS.get(kind)
    published = layout.images.get(_split(kind, dataset), 0) if layout else 0
    return f"{images} images, of {published} that were published" if images < published else None


def _split(kind: str, dataset: Mapping[str, Any]) -> str:
    defaults = {"Flowers102": "trainval", "OxfordIIITPet": "trainval"}  # mmpretrain's defaults
    prefix = dataset.get("data_prefix")
    return dataset.get("split") or (prefix if isinstance(prefix, str) else None) or defaults.get(kind, "train")


def _mat_faults(path: Path, variables: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Checks that a .mat file holds the given variables with the given fields."""
    if not variables:
        return []
    try:
        content = mat4py.loadmat(str(path))
    except Exception as error:  # mat4py raises many kinds of errors for other formats
        return [f"{path} cannot be read as a MATLAB file (version 5): {error}"]
    for name, fields in variables.items():
        if name not in content:
            return [f"{path} is another .mat file: it holds no {name}, but {', '.join(content) or 'nothing'}"]
        value = content[name]
        if absent := [field for field in fields if not (isinstance(value, dict) and field in value)]:
            return [f"{path} is another .mat file: its {name} have no {' and no '.join(absent)}"]
    return []
