"""Annotation files with random damage: they can be trained on, with everything left out counted, or are one DataError.

What mmdet makes of a file is the reference. Thousands of files::

    pytest tests/test_mutated_annotations.py --hypothesis-profile=long --hypothesis-seed=1
"""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import make_coco, make_voc_folder, read_list
from hypothesis import event, given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

from mmnetaug.datasets import DatasetReport, check_data, fill_config
from mmnetaug.errors import DataError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mmdet_scope")]
CONFIG = Path(__file__).parents[1] / "configs/_base_/custom_data.py"
CLASSES = ("cat", "dog", "emu")


@pytest.fixture(scope="module")
def base_config() -> Config:
    cfg = Config.fromfile(CONFIG)
    cfg.model = dict(type="X", bbox_head=dict(num_classes=3))
    slow = ("mmdet.PhotoMetricDistortion", "mmdet.Expand", "mmnetaug.MinIoURandomCrop")
    pipeline = [step for step in cfg.train_dataloader.dataset.pipeline if step.type not in slow]
    for step in pipeline:
        if "scale" in step:
            step.scale = (64, 64)
    cfg.train_dataloader.dataset.pipeline = pipeline
    return cfg


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory) -> Path:
    return make_coco(tmp_path_factory.mktemp("coco"), dict(train=4, val=2), CLASSES, [7, 3, 1], per_image=3)


@pytest.fixture(scope="module")
def voc_root(tmp_path_factory) -> Path:
    return make_voc_folder(tmp_path_factory.mktemp("voc"), dict(train=4, val=2), CLASSES)


# --- damage -----------------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, -1, 2, 0.5, 7, 128, 1e6, 1e9, 1e308, 10**30, -0.0, float("nan"), float("inf")])
TEXTS = st.sampled_from(["", " ", "cat", "7", "inf", "1e999", "null", "../x", "a\0b", "x" * 300, "ä", "\ud800"])
SCALARS = st.none() | st.booleans() | NUMBERS | st.integers() | st.floats() | TEXTS | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner), max_leaves=5)
ENCODINGS = st.sampled_from([*["utf-8"] * 9, "utf-8-sig", "utf-16", "latin-1", "utf-32"])


@st.composite
def damaged_json(draw, content: dict) -> bytes:
    """A COCO file with one to three changes of values, keys and structure, and some of its bytes."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        damage_value(draw, content)
    text = json.dumps(content)
    if draw(st.integers(0, 19)) == 0:
        depth = draw(st.sampled_from([10, 3000, 100_000]))
        text = text.replace('"info": {', '"info": {"deep": ' + "[" * depth + "]" * depth + ", ")
    return damage_bytes(draw, text.encode(draw(ENCODINGS)))


def damage_value(draw, content: dict) -> None:
    place = content
    while True:
        keys = list(place if isinstance(place, dict) else range(len(place)))
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, list | dict) or not inner or draw(st.integers(0, 4)) == 0:
            break
        place = inner
    change = draw(st.sampled_from(["replace", "replace", "scale", "delete", "repeat", "rename", "wrap", "swap"]))
    if change == "replace":
        place[key] = draw(VALUES)
    elif change == "scale" and isinstance(inner, int | float):
        place[key] = inner * draw(st.sampled_from([-1, 0, 0.01, 10, 1e5, 1e300]))
    elif change == "delete":
        del place[key]
    elif change == "repeat" and isinstance(place, list):
        place.append(copy.deepcopy(inner))
    elif change == "rename" and isinstance(place, dict):
        place[draw(TEXTS)] = place.pop(key)
    elif change == "wrap":
        place[key] = draw(st.sampled_from([[inner], {"value": inner}, str(inner), repr(inner)]))
    elif change == "swap":
        other = draw(st.sampled_from(keys))
        place[key], place[other] = place[other], place[key]


def damage_bytes(draw, content: bytes) -> bytes:
    change = draw(st.sampled_from([*["none"] * 6, "cut", "insert", "delete", "empty"]))
    start = draw(st.integers(0, len(content)))
    if change == "cut":
        return content[:start]
    if change == "insert":
        return content[:start] + draw(st.binary(min_size=1, max_size=4)) + content[start:]
    if change == "delete":
        return content[:start] + content[start + draw(st.integers(1, 8)) :]
    return b"" if change == "empty" else content


XML_HEADS = st.sampled_from(
    [
        *[b""] * 9,
        b'<?xml version="1.0" encoding="klingon"?>',
        b'<?xml version="1.0" encoding="utf-7"?>',
        b'<?xml version="1.0" encoding="hex"?>',
        b'<?xml version="1.0" encoding="cp1252"?>',
        b'<!DOCTYPE annotation [<!ENTITY a "x"><!ENTITY b "&a;&a;">]>',
        b'<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/hostname">]>',
        b"<!DOCTYPE annotation>",
    ]
)
ODD_TEXTS = st.sampled_from([" 5 ", "5.5", "1_0", "+5", "&a;", "-3"])
XML_TEXTS = TEXTS | ODD_TEXTS | NUMBERS.map(str) | st.integers().map(str)


@st.composite
def damaged_xml(draw, content: bytes) -> bytes:
    """A VOC file with one to three changes of its elements, and some of its bytes."""
    root = ET.fromstring(content)
    for _ in range(draw(st.integers(1, 3))):
        parents = [element for element in root.iter() if len(element)]
        if not parents:
            break
        parent = draw(st.sampled_from(parents))
        child = draw(st.sampled_from(list(parent)))
        change = draw(st.sampled_from(["text", "text", "text", "remove", "rename", "repeat", "nest", "empty"]))
        if change == "text":
            child.text = draw(XML_TEXTS)
        elif change == "remove":
            parent.remove(child)
        elif change == "rename":
            child.tag = draw(st.sampled_from([*{element.tag for element in root.iter()}, "other"]))
        elif change == "repeat":
            parent.insert(draw(st.integers(0, len(parent))), copy.deepcopy(child))
        elif change == "nest":
            child.append(copy.deepcopy(draw(st.sampled_from(list(root)))))
        else:
            child.clear()
    encoding = draw(st.sampled_from([*["utf-8"] * 8, "utf-16", "latin-1"]))
    text = ET.tostring(root, encoding, xml_declaration=encoding == "utf-16") if printable(root) else content
    return damage_bytes(draw, draw(XML_HEADS) + text)


def printable(root: ET.Element) -> bool:
    try:
        ET.tostring(root, "utf-8")
    except UnicodeEncodeError:
        return False
    return True


# --- what must hold ---------------------------------------------------------------------------------------------------

SETTINGS = st.fixed_dictionaries(
    dict(
        classes=st.sampled_from([None, CLASSES]),
        filter_cfg=st.sampled_from([None, dict(filter_empty_gt=True), dict(filter_empty_gt=True, min_size=32)]),
    )
)


def count_left_out(report: DatasetReport) -> dict[str, int]:
    """What the report's warnings say is left out, by reason."""
    reasons = ("no area", "lie outside", "marked with ignore", "not in the config", "left out by filter_cfg")
    found = dict.fromkeys(reasons, 0)
    for warning in report.warnings:
        for reason in reasons:
            if reason in warning:
                found[reason] += int(re.match(r"(\d+) ", warning)[1])
    return found


def reason(error: DataError) -> str:
    """The kind of an error, for the statistics: its message without names, numbers and what was quoted."""
    return re.sub(r"/\S+|`.*?`|'.*?'|[\d$.\[\]]+", "", str(error).splitlines()[0])[:80]


def train_on(base: Config, root: Path, options: dict, stock: bool = False) -> tuple[DatasetReport, list, list] | None:
    """Check data and load them as training does; returns the report, mmdet's unfiltered records, and those it uses."""
    cfg = copy.deepcopy(base)
    cfg.classes = options["classes"]
    try:
        fill_config(cfg, root)
        dataset = cfg.train_dataloader.dataset
        dataset.filter_cfg = options["filter_cfg"]
        if stock:
            dataset.type = "mmdet.XMLDataset"
        report = check_data(cfg)[0]
    except DataError as error:
        event(f"refused: {reason(error)}")
        return None
    event("trained on")
    whole = DATASETS.build(dict(dataset, filter_cfg=None, serialize_data=False))
    used = DATASETS.build(dataset)
    batch = pseudo_collate([used[i] for i in range(len(used))])
    assert len(batch["inputs"]) == len(used) > 0
    for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        boxes, labels = sample.gt_instances.bboxes.tensor.numpy(), sample.gt_instances.labels.numpy()
        height, width = image.shape[1:]
        assert np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= [width, height] * 2).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()
        assert ((labels >= 0) & (labels < len(cfg.classes))).all()
    return report, records(whole), records(used)


def records(dataset) -> list[dict]:
    return [dataset.get_data_info(i) for i in range(len(dataset))]


@given(data=st.data(), options=SETTINGS)
def test_damaged_coco_files(base_config, coco_root, data, options):
    file = coco_root / "annotations/instances_train.json"
    intact = file.read_bytes()
    file.write_bytes(data.draw(damaged_json(json.loads(intact))))
    try:
        result = train_on(base_config, coco_root, options)
        content = json.loads(file.read_text()) if result else None
    finally:
        file.write_bytes(intact)
    if result is None:
        return
    report, whole, used = result
    left_out = count_left_out(report)
    assert report.images == len(whole) == len(content["images"])
    assert len(whole) - len(used) == left_out.pop("left out by filter_cfg")
    objects = sum(len(one["instances"]) for one in whole)
    assert objects == sum(report.objects[name] for name in report.classes)
    assert len(content["annotations"]) - objects == sum(left_out.values())


@given(data=st.data(), options=SETTINGS, stock=st.booleans())
def test_damaged_voc_files(base_config, voc_root, data, options, stock):
    ids = read_list(voc_root, "train")
    target = data.draw(st.sampled_from([*ids[:2], "list"]))
    file = voc_root / ("ImageSets/Main/train.txt" if target == "list" else f"Annotations/{target}.xml")
    intact = file.read_bytes()
    file.write_bytes(damage_bytes(data.draw, intact) if target == "list" else data.draw(damaged_xml(intact)))
    try:
        result = train_on(base_config, voc_root, options, stock)
        ids = (voc_root / "ImageSets/Main/train.txt").read_text().splitlines() if result else []
        annotated = sum(len(ET.parse(voc_root / f"Annotations/{name}.xml").findall("object")) for name in ids)
    finally:
        file.write_bytes(intact)
    if result is None:
        return
    report, whole, used = result
    left_out = count_left_out(report)
    assert report.images == len(whole) == len(ids)
    assert len(whole) - len(used) == left_out.pop("left out by filter_cfg")
    objects = sum(report.objects[name] for name in report.classes)
    assert annotated - objects == sum(left_out.values())
    # boxes outside of their image are left to FilterAnnotations; so are, in mmdet's own class, those without area
    kept = left_out["lie outside"] + (left_out["no area"] if stock else 0)
    assert objects <= sum(len(one["instances"]) for one in whole) <= objects + kept
