"""Descriptions of data layouts, for error messages."""

from __future__ import annotations

from pathlib import Path

VOC_LAYOUT = """    {root}/
        JPEGImages/          the images
        Annotations/         one XML file per image
        ImageSets/Main/      train.txt and val.txt or test.txt: one image name per line, without suffix"""
COCO_LAYOUT = """    {root}/
        annotations/         instances_train*.json and instances_val*.json
        train*/, val*/       the images"""
EXPORTED_LAYOUTS = """    {root}/
        train/, valid/, test/    _annotations.coco.json, or one XML file per image, beside the images
    {root}/
        data.yaml                YOLO: the classes; or classes.txt
        images/train, labels/train; images/val, labels/val; or train/images, train/labels; ..."""


def layouts(root: str | Path) -> str:
    """Describes how to lay out detection data below ``root``."""
    return (
        f"Detection data lies in one of these layouts. Pascal VOC:\n{VOC_LAYOUT.format(root=root)}\n"
        f"COCO:\n{COCO_LAYOUT.format(root=root)}\n"
        f"or as labelling tools export it:\n{EXPORTED_LAYOUTS.format(root=root)}"
    )


def no_folder(root: str | Path) -> str:
    """What is said of data whose folder is not there."""
    return (
        f"no data: there is no folder {root}. Set it with --data-root, or data_root in the config.\n"
        f"{layouts('<data_root>')}"
    )
