"""Data: the demo's digit scenes, a user's own data, and the checks that come before training."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import re
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_fixtures import (
    COCO_CLASSES,
    VOC_CLASSES,
    make_class_folders,
    make_coco,
    make_flat_voc,
    make_roboflow,
    make_voc_devkit,
    make_voc_folder,
    make_yolo,
    read_list,
    write_list,
    write_voc_xml,
)
from mmdet.evaluation import VOCMetric
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import mmnetaug  # noqa: F401 (registers the data sets)
from mmnetaug import terminal
from mmnetaug.datasets import DatasetReport, check_data, decoded_once, fill_config, find_unlisted
from mmnetaug.datasets import check as check_module
from mmnetaug.demo import digits
from mmnetaug.errors import DataError, UserError

pytestmark = pytest.mark.usefixtures("mmdet_scope")
CONFIGS = Path(__file__).parents[1] / "configs/_base_"


def check_dataset(dataset: dict, split: str = "train") -> DatasetReport:
    """Checks one data set."""
    [report] = check_data(Config({f"{split}_dataloader": dict(dataset=dataset)}), (split,))
    return report


# --- digits -----------------------------------------------------------------------------------------------------------


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


FEW = {"train": 20, "test": 3}  # every digit occurs in the 20


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "digits"
    digits.generate(out, FEW)
    return out


def test_scans_are_split_without_overlap_and_evenly():
    splits = digits.split_scans()
    keys = {name: {scan.tobytes() for scan in scans} for name, (scans, _) in splits.items()}
    assert not keys["train"] & keys["test"]
    assert len(splits["train"][0]) + len(splits["test"][0]) == 1797
    for label in range(10):
        counts = {name: (labels == label).sum() for name, (_, labels) in splits.items()}
        assert counts["test"] == pytest.approx(0.2 * sum(counts.values()), abs=1)


def test_scenes_are_drawn_from_their_own_split(monkeypatch, tmp_path):
    drawn = {}
    draw = digits.draw_digits

    def spy(scene, scans, labels, rng):
        drawn.setdefault(len(scans), []).append({scan.tobytes() for scan in scans})
        return draw(scene, scans, labels, rng)

    monkeypatch.setattr(digits, "draw_digits", spy)
    digits.generate(tmp_path / "digits", FEW)
    train, test = drawn[1437], drawn[360]
    assert (len(train), len(test)) == (20, 3)
    assert not set.union(*train) & set.union(*test)


def test_generation_is_deterministic_and_scenes_do_not_depend_on_their_number(scenes, tmp_path):
    digits.generate(tmp_path / "again", FEW)
    assert digest(tmp_path / "again") == digest(scenes)
    digits.generate(tmp_path / "fewer", {"train": 2, "test": 3})
    fewer, all_of_them = digest(tmp_path / "fewer"), digest(scenes)
    assert all(all_of_them[name] == value for name, value in fewer.items() if not name.startswith("ImageSets"))
    digits.generate(tmp_path / "other", FEW, seed=1)
    assert digest(tmp_path / "other") != digest(scenes)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_tight_and_hardly_overlap(seed):
    rng = np.random.default_rng(seed)
    scans, labels = digits.split_scans()["train"]
    background = digits.textured_background(rng)
    scene = background.copy()
    boxes, drawn = digits.draw_digits(scene, scans, labels, rng)
    assert 1 <= len(boxes) <= 5 and len(drawn) == len(boxes)
    changed = np.abs(scene - background).max(axis=2) > 1
    covered = np.zeros_like(changed)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        assert 0 <= x1 < x2 <= 160 and 0 <= y1 < y2 <= 160
        assert digits.DIGIT_SIZE[0] - 4 <= y2 - y1 <= digits.DIGIT_SIZE[1] + 4
        covered[y1:y2, x1:x2] = True
        for edge in (changed[y1, x1:x2], changed[y2 - 1, x1:x2], changed[y1:y2, x1], changed[y1:y2, x2 - 1]):
            assert edge.any()
        for a1, b1, a2, b2 in boxes[:i]:
            shared = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
            assert shared <= digits.MAX_OVERLAP * min((x2 - x1) * (y2 - y1), (a2 - a1) * (b2 - b1))
    assert not (changed & ~covered).any()


def test_digit_annotations_give_back_the_boxes_drawn(scenes):
    dataset = DATASETS.build(dict(type="mmnetaug.DigitScenes", data_root=str(scenes), split="test"))
    assert dataset.metainfo["classes"] == tuple("0123456789") and len(dataset) == 3
    scans, labels = digits.split_scans()["test"]
    for i in range(3):
        rng = np.random.default_rng([0, 1, i])
        scene = digits.textured_background(rng)
        boxes, drawn = digits.draw_digits(scene, scans, labels, rng)
        info = dataset.get_data_info(i)
        # mmdet reads VOC boxes from 0, their last pixel included
        np.testing.assert_array_equal([one["bbox"] for one in info["instances"]], boxes - [0, 0, 1, 1])
        assert [one["bbox_label"] for one in info["instances"]] == drawn.tolist()
        written = cv2.imread(info["img_path"])
        assert np.abs(written - scene).mean() < 8  # JPEG


def test_killed_generation_leaves_nothing(monkeypatch, tmp_path):
    written = []

    def die_at_third(path, *args):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_write_annotation", die_at_third)
    with pytest.raises(KeyboardInterrupt):
        digits.generate(tmp_path / "digits", FEW)
    assert written and list(tmp_path.iterdir()) == []


def _ensure(root, barrier):
    digits.SCENES = FEW
    barrier.wait()
    digits.ensure_digits(root)


def test_processes_may_generate_at_once(scenes, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_ensure, args=(tmp_path / "digits", barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert digest(tmp_path / "digits") == digest(scenes)


@pytest.mark.parametrize("version", [None, "0"])
def test_foreign_folder_is_not_taken_for_digits(tmp_path, version):
    if version:
        (tmp_path / "version.txt").write_text(version)
    with pytest.raises(FileExistsError, match="remove that folder"):
        DATASETS.build(dict(type="mmnetaug.DigitScenes", data_root=str(tmp_path)))
    with pytest.raises(DataError, match="remove that folder"):
        check_dataset(dict(type="mmnetaug.DigitScenes", data_root=str(tmp_path)))


def test_digits_config_loads_batches(scenes):
    cfg = Config.fromfile(CONFIGS / "digits_data.py")
    fill_config(cfg, scenes)
    cfg.model = dict(type="X", bbox_head=dict(num_classes=10))
    train, val = check_data(cfg)
    assert (train.images, val.images) == (20, 3)
    assert not any("Flip" in step["type"] for step in cfg.train_pipeline)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = DATASETS.build(loader.dataset)
        for item in (dataset[i] for i in range(len(dataset))):
            assert item["inputs"].shape == (3, 160, 160)
            assert item["data_samples"].gt_instances.bboxes.tensor.dtype == torch.float32


# --- a user's own data ------------------------------------------------------------------------------------------------


def custom_config(root: Path, **options) -> Config:
    cfg = Config.fromfile(CONFIGS / "custom_data.py")
    cfg.model = dict(
        type="mmnetaug.NetAug",
        model=dict(type="YOLOV3", backbone=dict(num_classes=1000), bbox_head=dict(type="YOLOV3Head", num_classes=80)),
    )
    cfg.merge_from_dict({"work_dir": str(root.parent / f"{root.name}_work"), **options})
    return fill_config(cfg, root)


def assert_usable(cfg: Config, images: dict[str, int], classes: tuple[str, ...]) -> None:
    """The filled config loads each split."""
    check_data(cfg, ("train", "val", "test"))
    assert cfg.model.model.bbox_head.num_classes == len(classes)
    assert cfg.model.model.backbone.num_classes == 1000
    for split, count in images.items():
        dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
        assert dataset.metainfo["classes"] == classes
        assert len(dataset) == count
        assert dataset[0]["inputs"].shape[0] == 3


@pytest.mark.parametrize(
    "suffix, splits, expected",
    [
        (".jpg", dict(train=3, val=2), dict(train=3, val=2, test=2)),
        (".tif", dict(train=3, val=2), dict(train=3, val=2, test=2)),
        (".JPG", dict(train=4, val=2, test=3), dict(train=4, val=2, test=3)),
        # nothing to choose checkpoints by: a part of the training images is set aside
        (".png", dict(train=3, test=2), dict(train=2, val=1, test=2)),
        (".jpeg", dict(trainval=20, test=3), dict(train=18, val=2, test=3)),
    ],
)
def test_custom_voc(tmp_path, splits, expected, suffix):
    make_voc_folder(tmp_path, splits, ("emu", "cat", "dog"), suffix=suffix)
    cfg = custom_config(tmp_path)
    assert cfg.data_layout == "voc" and cfg.val_evaluator.type == "mmdet.VOCMetric"
    assert_usable(cfg, expected, ("cat", "dog", "emu"))


@pytest.mark.parametrize("test", [{}, dict(test=4)])
def test_custom_voc_trains_on_train_and_chooses_by_val_where_trainval_is_there_too(tmp_path, test):
    make_voc_folder(tmp_path, dict(train=3, val=2, **test))
    write_list(tmp_path, "trainval", read_list(tmp_path, "train") + read_list(tmp_path, "val"))
    cfg = custom_config(tmp_path)
    assert_usable(cfg, dict(train=3, val=2, test=4 if test else 2), ("cat", "dog", "emu"))
    reports = check_data(cfg, ("train", "val", "test"))
    told = ["train.txt", "val.txt", "test.txt"][: len(reports)]
    for report, name in zip(reports, told, strict=True):
        assert f"of ImageSets/Main/{name}" in str(report)


@pytest.mark.parametrize("train", ["train", "trainval"])
@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_custom_data_without_val_hold_the_same_part_of_train_out(tmp_path, layout, train):
    make = make_voc_folder if layout == "voc" else make_coco
    make(tmp_path / "data", {train: 20, "test": 5}, ("cat", "dog", "emu"))
    found = []
    for work_dir in (tmp_path / "a", tmp_path / "b"):
        cfg = custom_config(tmp_path / "data", work_dir=str(work_dir))
        reports = check_data(cfg, ("train", "val", "test"))
        assert [report.images for report in reports] == [18, 2, 5]
        assert str(work_dir / "held_out/val") in str(reports[1])
        if layout == "coco":
            assert cfg.val_evaluator.ann_file == cfg.val_dataloader.dataset.ann_file
        loaded = [DATASETS.build(cfg[f"{split}_dataloader"].dataset) for split in ("train", "val")]
        found.append([{one.get_data_info(i)["img_path"] for i in range(len(one))} for one in loaded])
        assert [len(part) for part in found[-1]] == [18, 2] and not found[-1][0] & found[-1][1]
    assert found[0] == found[1]


def test_one_training_image_cannot_be_held_out(tmp_path):
    make_voc_folder(tmp_path, dict(train=1, test=2))
    with pytest.raises(DataError, match="1 training images are too few"):
        custom_config(tmp_path)


@pytest.mark.parametrize("folder", ["{split}2017", "images/{split}", "images", "."])
def test_custom_coco(tmp_path, folder):
    classes, ids = ("zebra", "cat", "unused"), [7, 3, 0]
    make_coco(tmp_path, dict(train2017=4, val2017=3), classes[:2], ids, per_image=2)
    for split in ("train", "val"):
        for path in (tmp_path / f"{split}2017").iterdir():
            target = tmp_path / folder.format(split=split) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        file = tmp_path / f"annotations/instances_{split}2017.json"
        content = json.loads(file.read_text())
        content["categories"].append(dict(id=0, name="unused"))
        file.write_text(json.dumps(content))
        (tmp_path / f"annotations/captions_{split}2017.json").write_text("{}")
    cfg = custom_config(tmp_path)
    assert cfg.data_layout == "coco" and cfg.test_evaluator.type == "mmdet.CocoMetric"
    assert_usable(cfg, dict(train=4, val=3, test=3), ("zebra", "cat"))


def number_anew(root: Path, split: str) -> None:
    """Call the images of a split 0.jpg, 1.jpg, ..., as exports with a numbering of their own per split do."""
    names: dict[str, str] = {}
    for path in sorted((root / split).iterdir()):
        names[path.name] = f"{len(names)}.jpg"
        path.rename(path.with_name(names[path.name]))
    file = root / f"annotations/instances_{split}.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["file_name"] = names[image["file_name"]]
    file.write_text(json.dumps(content))


def drop_key(root: Path, kind: str, key: str) -> None:
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    del content[kind][0][key]
    file.write_text(json.dumps(content))


def test_custom_coco_splits_that_number_their_images_alike(tmp_path):
    splits = dict(train=4, val=4, test=4)
    make_coco(tmp_path, splits, ("cat", "dog"), per_image=2)
    for split in splits:
        number_anew(tmp_path, split)
    shutil.copytree(tmp_path / "train", tmp_path / "a_train_preview")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/val").symlink_to(tmp_path / "val")  # as data shared with YOLO tools have
    (tmp_path / "test").rename(tmp_path / "images.tmp")
    (tmp_path / "test").mkdir()
    (tmp_path / "images.tmp").rename(tmp_path / "test/images")
    cfg = custom_config(tmp_path)
    folders = {split: cfg[f"{split}_dataloader"].dataset.data_prefix.img for split in splits}
    assert folders == dict(train="train/", val="val/", test="test/images/")
    (tmp_path / "images/val").unlink()
    (tmp_path / "val").rename(tmp_path / "held_out")
    with pytest.raises(DataError, match=r"instances_val\.json: a_train_preview/, held_out/, .*right one val,"):
        custom_config(tmp_path)


def test_custom_coco_with_a_copy_of_the_images(tmp_path):
    make_coco(tmp_path, dict(train=4, val=3), ("cat", "dog"), per_image=2)
    for folder in ("images", "thumbs"):
        for split in ("train", "val"):
            shutil.copytree(tmp_path / split, tmp_path / folder, dirs_exist_ok=True)
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / split)
    (tmp_path / "depth").mkdir()
    shutil.copytree(tmp_path / "images", tmp_path / "depth", dirs_exist_ok=True)
    assert custom_config(tmp_path).train_dataloader.dataset.data_prefix.img == "images/"
    shutil.copytree(tmp_path / "images", tmp_path / "val_predictions")
    with pytest.raises(DataError, match=r"which folder of .* depth/, images/, thumbs/, val_predictions/"):
        custom_config(tmp_path)


def test_custom_coco_is_not_measured_on_what_it_is_trained_on(tmp_path):
    make_coco(tmp_path, dict(train=4), ("cat", "dog"), per_image=2)
    shutil.copy(tmp_path / "annotations/instances_train.json", tmp_path / "annotations/instances_val.json")
    with pytest.raises(DataError, match=r"4 images are in both instances_train\.json and instances_val\.json of "):
        custom_config(tmp_path)
    file = tmp_path / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["file_name"] = f"train/{image['file_name']}"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="4 images are in both"):
        custom_config(tmp_path)


@pytest.mark.parametrize(
    "splits, expected",
    [
        ({"": 10}, dict(train=9, val=1, test=1)),
        (dict(train=4, valid=2), dict(train=4, val=2, test=2)),
        (dict(train=10, test=3), dict(train=9, val=1, test=3)),
        (dict(train=3, val=2, test=4), dict(train=3, val=2, test=4)),
    ],
)
def test_annotations_beside_the_images(tmp_path, splits, expected):
    cfg = custom_config(make_flat_voc(tmp_path / "data", splits))
    assert_usable(cfg, expected, ("cat", "dog", "emu"))
    loaded = {split: load(cfg, split) for split in ("train", "val", "test")}
    paths = {split: {one["img_path"] for one in items} for split, items in loaded.items()}
    assert not paths["train"] & (paths["val"] | paths["test"])
    for item in loaded["train"] + loaded["val"] + loaded["test"]:
        names = [one.findtext("name") for one in ET.parse(Path(item["img_path"]).with_suffix(".xml")).iter("object")]
        assert [("cat", "dog", "emu")[one["bbox_label"]] for one in item["instances"]] == names


@pytest.mark.parametrize(
    "splits, expected",
    [
        (dict(train=5, valid=3, test=4), dict(train=5, val=3, test=4)),
        (dict(train=10, test=3), dict(train=9, val=1, test=3)),
    ],
)
def test_a_coco_folder_of_roboflow(tmp_path, splits, expected):
    root = make_roboflow(tmp_path / "data", splits)
    cfg = custom_config(root)
    assert_usable(cfg, expected, ("cat", "dog"))
    assert cfg.test_evaluator.ann_file == str(root / "test/_annotations.coco.json")
    stored = json.loads((root / "test/_annotations.coco.json").read_text())
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in stored["annotations"])]
    assert [one["bbox"] for item in load(cfg, "test") for one in item["instances"]] == boxes


@pytest.mark.parametrize(
    "splits, folders, expected",
    [
        (dict(train=5, val=3), {}, dict(train=5, val=3, test=3)),
        (dict(train=5, valid=3, test=2), dict(images="{}/images", labels="{}/labels"), dict(train=5, val=3, test=2)),
        (dict(all=10), dict(images="images", labels="labels", names="classes.txt"), dict(train=9, val=1, test=1)),
    ],
    ids=["CVAT", "Roboflow", "Label Studio"],
)
def test_yolo_labels(tmp_path, splits, folders, expected):
    pytest.importorskip("supervision")
    drawn = make_yolo(tmp_path / "data", splits, **folders)
    cfg = custom_config(tmp_path / "data")
    assert_usable(cfg, expected, ("cat", "dog", "emu"))
    seen = set()
    for split in ("train", "val", "test"):
        for item in load(cfg, split):
            name = Path(item["img_path"]).name
            labels, boxes = drawn[name]
            seen.add(name)
            assert [one["bbox_label"] for one in item["instances"]] == labels
            given = np.array([one["bbox"] for one in item["instances"]]).reshape(-1, 4)
            np.testing.assert_allclose(given, np.reshape(boxes, (-1, 4)), atol=1e-3)
    assert seen == drawn.keys()


def test_outlines_in_yolo_labels_are_no_crowds(tmp_path):
    """The outline of two squares joined by a line is drawn in two parts."""
    pytest.importorskip("supervision")
    make_yolo(tmp_path / "data", dict(train=3, val=2))
    outline = "0.1 0.1 0.3 0.1 0.3 0.3 0.6 0.6 0.8 0.6 0.8 0.8 0.6 0.8 0.6 0.6 0.3 0.3 0.1 0.3"
    (tmp_path / "data/labels/val/val0.txt").write_text(f"0 {outline}\n")
    [one] = load(custom_config(tmp_path / "data"), "val")[0]["instances"]
    assert not one["ignore_flag"]
    np.testing.assert_allclose(one["bbox"], np.array([0.1, 0.1, 0.8, 0.8]) * [128, 96, 128, 96], atol=1)


def test_yolo_errors(tmp_path, monkeypatch):
    pytest.importorskip("supervision")
    make_yolo(tmp_path / "data", dict(train=3, val=2))
    (tmp_path / "data/labels/val/val0.txt").write_text("0 0.5 oops 0.2 0.2\n")
    with pytest.raises(DataError, match=r"labels/val cannot be read: (\n|.)*val0\.txt"):
        custom_config(tmp_path / "data")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name != "supervision" else None)
    with pytest.raises(DataError, match="pip install supervision"):
        custom_config(tmp_path / "data")


@pytest.mark.parametrize("layout", ["voc", "coco", "flat"])
def test_images_in_no_list_are_told(tmp_path, layout):
    if layout == "voc":
        root = make_voc_folder(tmp_path / "data", dict(train=3, val=2))
    elif layout == "coco":
        root = make_coco(tmp_path / "data", dict(train2017=3, val2017=2), ("cat", "dog"), (1, 2), per_image=2)
    else:
        root = make_flat_voc(tmp_path / "data", {"": 10})
    assert find_unlisted(custom_config(root)) == []
    folder = root / dict(voc="JPEGImages", coco="train2017", flat=".")[layout]
    one = next(folder.glob("*.jpg"))
    for name in ("new1.jpg", "new2.png"):
        shutil.copy(one, folder / name)
    [line] = find_unlisted(custom_config(root))
    assert line == f"2 images in {folder} are in no list and unused: new1.jpg, new2.png"


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_each_annotation_file_is_decoded_once(tmp_path, layout, monkeypatch):
    module = importlib.import_module(f"mmnetaug.datasets.{layout}")
    decoded = Counter()
    if layout == "voc":
        root = make_voc_folder(tmp_path / "data", dict(train=3, val=2, test=2))
        parse = module.ElementTree.parse
        monkeypatch.setattr(module.ElementTree, "parse", lambda path: decoded.update([Path(path).name]) or parse(path))
    else:
        root = make_coco(tmp_path / "data", dict(train2017=3, val2017=2), ("cat", "dog"), (1, 2), per_image=2)
        read = Path.read_text
        monkeypatch.setattr(Path, "read_text", lambda path: decoded.update([path.name]) or read(path))

    def check() -> list[str]:
        cfg = custom_config(root)
        return [*map(str, check_data(cfg)), *find_unlisted(cfg)]

    expected = check()
    assert max(decoded.values()) > 1
    decoded.clear()
    with decoded_once():
        assert check() == expected
    assert set(decoded.values()) == {1}
    assert len(decoded) == dict(voc=5, coco=2)[layout]  # not those of a test split of its own
    decoded.clear()
    check()
    assert max(decoded.values()) > 1


def load(cfg: Config, split: str) -> list[dict]:
    """Image path and annotations of every image of a split."""
    dataset = DATASETS.build({**cfg[f"{split}_dataloader"].dataset, "pipeline": []})
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def test_custom_classes_can_be_given(tmp_path):
    make_voc_folder(tmp_path, dict(train=3, val=2))
    cfg = custom_config(tmp_path, classes=["emu", "cat"])
    assert_usable(cfg, dict(train=3, val=2), ("emu", "cat"))
    [report] = check_data(cfg, ("train",))
    assert any("dog (2)" in warning for warning in report.warnings)


def test_filled_config_is_complete_when_written_out(tmp_path):
    make_voc_folder(tmp_path, dict(train=3, val=2))
    cfg = custom_config(tmp_path)
    again = Config.fromstring(cfg.pretty_text, ".py")
    assert fill_config(again).to_dict() == cfg.to_dict()


def test_custom_data_root_may_come_from_the_config(tmp_path):
    make_voc_folder(tmp_path, dict(train=3, val=2))
    cfg = Config.fromfile(CONFIGS / "custom_data.py")
    cfg.merge_from_dict(dict(data_root=str(tmp_path), model=dict(head=dict(num_classes=5))))
    assert fill_config(cfg).model.head.num_classes == 3


def test_images_without_objects_are_trained_on(tmp_path):
    make_voc_folder(tmp_path, dict(train=3, val=2))
    write_voc_xml(tmp_path / f"Annotations/{read_list(tmp_path, 'train')[0]}.xml", [])
    dataset = DATASETS.build(custom_config(tmp_path).train_dataloader.dataset)
    assert len(dataset) == 3
    assert len(dataset[0]["data_samples"].gt_instances.bboxes) == 0


@pytest.mark.parametrize(
    "break_it, message",
    [
        (shutil.rmtree, "there is no folder"),
        (lambda root: shutil.rmtree(root / "Annotations"), "no data in a layout known here"),
        (lambda root: (root / "ImageSets/Main/train.txt").unlink(), "has no train.txt"),
        (lambda root: (root / "ImageSets/Main/val.txt").unlink(), "has no val.txt or test.txt"),
        (lambda root: write_list(root, "val", read_list(root, "train")), "3 images are in both train.txt and val.txt"),
        (lambda root: make_coco(root, dict(train2017=2, val2017=2)), "in VOC and in COCO layout"),
        (
            lambda root: [write_voc_xml(path, []) for path in (root / "Annotations").iterdir()],
            "has an annotated object",
        ),
    ],
)
def test_custom_voc_errors(tmp_path, break_it, message):
    root = make_voc_folder(tmp_path / "data", dict(train=3, val=2))
    break_it(root)
    with pytest.raises(DataError, match=message):
        custom_config(root)


def test_custom_error_points_to_the_folder_below(tmp_path):
    devkit = make_voc_devkit(tmp_path, 2, 2, 2)
    with pytest.raises(DataError, match=f"Did you mean {devkit}/VOC2007 or {devkit}/VOC2012"):
        custom_config(devkit)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda root: (root / "annotations/instances_train2017.json").unlink(), r"has no \*train\*.json"),
        (lambda root: (root / "annotations/instances_val2017.json").unlink(), r"has no \*val\*.json or"),
        (lambda root: (root / "annotations/instances_train2017.json").write_text("{"), "JSON is malformed|truncated"),
        (lambda root: (root / "annotations/instances_train2017.json").write_text("[]"), "is not a COCO annotation"),
        (
            lambda root: [
                (root / "annotations/instances_val2017.json").unlink(),
                (root / "annotations/instances_train2017.json").rename(root / "annotations/trainval.json"),
            ],
            r"has no \*val\*.json or",
        ),
        (lambda root: drop_key(root, "images", "file_name"), r"required field `file_name` - at `\$\.images\[0\]`"),
        (lambda root: drop_key(root, "categories", "name"), r"required field `name` - at `\$\.categories\[0\]`"),
        (lambda root: shutil.rmtree(root / "val2017"), "no folder below .* holds the images of instances_val2017"),
        (
            lambda root: shutil.copy(
                root / "annotations/instances_val2017.json", root / "annotations/instances_valid.json"
            ),
            "which file",
        ),
    ],
)
def test_custom_coco_errors(tmp_path, break_it, message):
    root = make_coco(tmp_path / "data", dict(train2017=3, val2017=2), ("cat", "dog"), per_image=2)
    break_it(root)
    with pytest.raises(DataError, match=message):
        custom_config(root)


@pytest.mark.parametrize("data_root", ["data/VOCdevkit/", "data/VOCdevkit"])
def test_data_root_is_replaced_everywhere(data_root):
    cfg = Config(
        dict(
            data_root=data_root,
            train_dataloader=dict(
                dataset=dict(
                    type="ConcatDataset",
                    datasets=[
                        dict(data_root=data_root, ann_file="VOC2007/ImageSets/Main/trainval.txt"),
                        dict(data_root="data/VOCdevkit2/", ann_file="a.txt"),
                    ],
                )
            ),
            val_dataloader=dict(dataset=dict(data_root=data_root)),
            val_evaluator=[dict(ann_file=f"{data_root.rstrip('/')}/val.json", metric="bbox")],
        )
    )
    fill_config(cfg, "/mine")
    first, second = cfg.train_dataloader.dataset.datasets
    assert first.data_root.rstrip("/") == "/mine"
    assert (first.ann_file, second.data_root) == ("VOC2007/ImageSets/Main/trainval.txt", "data/VOCdevkit2/")
    assert cfg.val_dataloader.dataset.data_root.rstrip("/") == "/mine"
    assert cfg.val_evaluator[0].ann_file == "/mine/val.json" and cfg.data_root == "/mine"


def test_a_data_root_that_no_data_set_lies_below_is_an_error():
    cfg = Config(dict(data_root="data/mine", train_dataloader=dict(dataset=dict(data_root="data/other"))))
    with pytest.raises(UserError, match="no data set of the config lies below its data_root"):
        fill_config(cfg, "/elsewhere")


def test_a_filled_config_can_be_pointed_at_other_data(tmp_path, monkeypatch):
    for name in ("a", "b"):
        make_voc_folder(tmp_path / name, dict(train=3, val=2))
    monkeypatch.chdir(tmp_path)
    cfg = fill_config(custom_config(tmp_path / "a"), "./a/")
    again = Config.fromstring(fill_config(cfg, "./a").pretty_text, ".py")
    fill_config(again, tmp_path / "b")
    assert again.val_dataloader.dataset.data_root == again.data_root == str(tmp_path / "b")


def test_lists_with_suffixes_or_blanks_are_told(tmp_path):
    root = make_voc_folder(tmp_path, dict(train=3, val=2))
    write_list(root, "train", [f"{name} " for name in read_list(root, "train")])
    with pytest.raises(
        DataError, match=r"no line of .*train\.txt names an annotation file, such as 'Annotations/.* \.xml'"
    ):
        custom_config(root)


@pytest.mark.parametrize("box", [(130, 20, 160, 40), (20, 20, 60, 60)], ids=["outside", "inside"])
def test_boxes_outside_of_their_image_do_not_reach_the_loss(tmp_path, box):
    root = make_voc_folder(tmp_path, dict(train=3, val=2))
    for name in read_list(root, "train"):
        write_voc_xml(root / f"Annotations/{name}.xml", [("cat", box)])
    dataset = DATASETS.build(custom_config(root).train_dataloader.dataset)
    for _ in range(5):
        for item in dataset:
            boxes = item["data_samples"].gt_instances.bboxes.tensor
            assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()
            assert len(boxes) <= (box[0] < 128)


# --- checks -----------------------------------------------------------------------------------------------------------


def voc(root: Path, split="train", classes=("cat", "dog", "emu"), **kwargs) -> dict:
    return dict(
        type="mmnetaug.VOCLayoutDataset",
        data_root=str(root),
        ann_file=f"ImageSets/Main/{split}.txt",
        data_prefix=dict(sub_data_root=""),
        metainfo=dict(classes=classes),
        **kwargs,
    )


@pytest.mark.parametrize("config", ["voc", "voc_mixup", "custom_data"])
def test_difficult_objects_are_trained_on_but_not_measured(voc_root, config):
    for path in (voc_root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    cfg = Config.fromfile(CONFIGS / f"{config}.py")
    init_default_scope("mmdet")
    found = {}
    for split in ("train", "test"):
        dataset = cfg[f"{split}_dataloader"].dataset
        while "pipeline" not in dataset or "dataset" in dataset:
            dataset = dataset.get("dataset") or dataset.datasets[0]
        steps = [step for step in dataset.pipeline if "Load" in step.type or "Difficult" in step.type]
        sample = DATASETS.build(voc(voc_root, pipeline=[*steps, dict(type="PackDetInputs")]))[0]["data_samples"]
        found[split] = [len(sample.gt_instances), len(sample.ignored_instances)]
    assert found == dict(train=[2, 0], test=[1, 1])


def test_crowds_are_not_trained_on(coco_root):
    steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)]
    steps += [dict(type="mmnetaug.TrainOnDifficult"), dict(type="PackDetInputs")]
    sample = DATASETS.build(coco(coco_root, pipeline=steps))[0]["data_samples"]
    assert [len(sample.gt_instances), len(sample.ignored_instances)] == [1, 1]


def coco(root: Path, split="train", classes=("cat", "dog"), **kwargs) -> dict:
    return dict(
        type="mmdet.CocoDataset",
        data_root=str(root),
        ann_file=f"annotations/instances_{split}2017.json",
        data_prefix=dict(img=f"{split}2017/"),
        metainfo=dict(classes=classes),
        **kwargs,
    )


@pytest.fixture
def voc_root(tmp_path) -> Path:
    return make_voc_folder(tmp_path, dict(train=6, val=3))


@pytest.fixture
def coco_root(tmp_path) -> Path:
    return make_coco(tmp_path, dict(train2017=4, val2017=3), ("cat", "dog"), per_image=2)


def voc2012_style(devkit: Path, year: str, split: str, **kwargs) -> dict:
    return dict(
        type="mmdet.VOCDataset",
        data_root=str(devkit),
        ann_file=f"VOC{year}/ImageSets/Main/{split}.txt",
        data_prefix=dict(sub_data_root=f"VOC{year}/"),
        filter_cfg=dict(filter_empty_gt=True, bbox_min_size=1),
        **kwargs,
    )


def test_voc_devkit_passes(tmp_path):
    devkit = make_voc_devkit(tmp_path)
    parts = [voc2012_style(devkit, year, "trainval") for year in ("2007", "2012")]
    concat = dict(type="ConcatDataset", ignore_keys=["dataset_type"], datasets=parts)
    report = check_dataset(dict(type="RepeatDataset", times=3, dataset=concat))
    assert report.images == report.decoded == 24
    assert sum(report.objects.values()) == 48 and set(report.objects) == set(VOC_CLASSES)
    assert not report.warnings
    assert len(DATASETS.build(concat)) == 24


def test_class_absent_from_one_part_is_no_error(tmp_path):
    for name, classes in (("a", ("cat",)), ("b", ("dog",))):
        make_voc_folder(tmp_path / name, dict(train=2), classes)
    parts = [voc(tmp_path / name, classes=("cat", "dog")) for name in "ab"]
    report = check_dataset(dict(type="ConcatDataset", datasets=parts))
    assert report.objects == {"cat": 4, "dog": 4}


def test_coco_passes(tmp_path):
    make_coco(tmp_path)
    report = check_dataset(coco(tmp_path, classes=COCO_CLASSES))
    assert report.images == report.decoded == 11 and sum(report.objects.values()) == 80
    # in the validation split only 40 of the 80 classes occur, which is said and let pass
    report = check_dataset(coco(tmp_path, "val", classes=COCO_CLASSES), "val")
    assert len(report.warnings) == 1 and "and 35 more" in report.warnings[0]


def cut(path: Path, share=0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def first(root: Path, folder="JPEGImages") -> Path:
    return min((root / folder).iterdir())


def edit_box(root: Path, **values) -> None:
    """Change coordinates of the first object of the first annotation."""
    path = first(root, "Annotations")
    tree = ET.parse(path)
    box = tree.find("object/bndbox")
    for tag, value in values.items():
        box.find(tag).text = str(value)
    tree.write(path)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (shutil.rmtree, r"not there: list of images .*ImageSets/Main/train.txt; images .*; annotations .*"),
        (lambda root: shutil.rmtree(root / "JPEGImages"), "not there: images .*JPEGImages(\n|.)*one of these layouts"),
        (lambda root: first(root).unlink(), r"1 annotated images are absent: .*000001.jpg"),
        (lambda root: [p.unlink() for p in (root / "JPEGImages").iterdir()], "6 annotated images are absent: .* and 1"),
        (lambda root: first(root, "Annotations").unlink(), "1 listed images have no annotation file: 000001.xml"),
        (lambda root: first(root, "Annotations").write_text("<annotation>"), "1 annotation files cannot be read"),
        (
            lambda root: write_voc_xml(first(root, "Annotations"), [("", (1, 2, 3, 4))]),
            r"000001\.xml cannot be read: Expected `str` of length >= 1 - at `\$\.object\[0\]\.name`",
        ),
        (lambda root: cut(first(root)), r"1 images are damaged.*000001.jpg \(image file is truncated"),
        (lambda root: first(root).write_bytes(b""), "1 images are damaged"),
        (lambda root: first(root).write_bytes(b"not an image"), r"1 images are damaged.*cannot identify image file\)"),
        (lambda root: write_list(root, "train", []), "no image in it"),
        (
            lambda root: [write_voc_xml(path, []) for path in (root / "Annotations").iterdir()],
            "no object is annotated in it",
        ),
    ],
)
def test_voc_errors(voc_root, break_it, message):
    check_dataset(voc(voc_root))
    break_it(voc_root)
    with pytest.raises(DataError, match=message):
        check_dataset(voc(voc_root))


def edit_text(root: Path, old: str, new: str) -> None:
    """Change the first annotation file."""
    path = first(root, "Annotations")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BOMB = '<!DOCTYPE a [<!ENTITY a "a"><!ENTITY b "&a;&a;&a;"><!ENTITY c "&b;&b;&b;">]><annotation>&c;'


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("<width>128", "<width>", r"invalid literal .* - at `\$\.size\.width`"),
        ("<width>128", "<width>12.5", r"invalid literal .* - at `\$\.size\.width`"),
        ("<height>96</height>", "", r"missing required field `height` - at `\$\.size`"),
        ("<xmin>", "<xmin>inf</xmin><xmin>", r"got inf - at `\$\.object\[0\]\.bndbox\.xmin`"),
        ("<xmin>", "<xmin>1e999</xmin><xmin>", r"got 1e999 - at `\$\.object\[0\]\.bndbox\.xmin`"),
        ("<xmin>", "<xmin>nan</xmin><xmin>", r"got nan - at `\$\.object\[0\]\.bndbox\.xmin`"),
        ("<xmin>", "<left>1</left><xmin>ten</xmin><xmin>", r"'ten' - at `\$\.object\[0\]\.bndbox\.xmin`"),
        ("<bndbox>", "<bndbox/><bndbox>", r"got `str` - at `\$\.object\[0\]\.bndbox`"),
        ("<difficult>0", "<difficult>no", r"'no' - at `\$\.object\[0\]\.difficult`"),
        ("<annotation>", '<?xml version="1.0" encoding="klingon"?><annotation>', "unknown encoding: klingon"),
        ("<annotation>", '<?xml version="1.0" encoding="utf-7"?><annotation>', "multi-byte encodings"),
        ("<annotation>", BOMB, "EntitiesForbidden"),
    ],
)
def test_malformed_voc_files_are_one_error_that_says_where(voc_root, old, new, message):
    edit_text(voc_root, old, new)
    with pytest.raises(
        DataError, match=rf"1 annotation files cannot be read: .*000001\.xml cannot be read: .*{message}"
    ):
        check_data(custom_config(voc_root))


def test_a_list_of_images_in_another_encoding_is_an_error(voc_root):
    (voc_root / "ImageSets/Main/train.txt").write_bytes(b"000001\n\xff\n")
    for check in (lambda: check_dataset(voc(voc_root)), lambda: custom_config(voc_root)):
        with pytest.raises(DataError, match=r"train\.txt cannot be read as a list of images"):
            check()


def test_every_object_and_image_left_out_of_voc_files_is_counted(voc_root):
    paths = sorted((voc_root / "Annotations").iterdir())
    write_voc_xml(paths[0], [("cat", (130, 20, 160, 40)), ("cat", (20, 20, 60, 60))])
    write_voc_xml(paths[1], [("dog", (20, 20, 20, 60))])
    write_list(voc_root, "train", [*read_list(voc_root, "train"), "000003"])
    dataset = voc(voc_root, filter_cfg=dict(filter_empty_gt=True))
    with pytest.raises(DataError, match=r"1 boxes without area, or none within .* would reach the loss"):
        check_dataset(dataset)
    dataset["pipeline"] = [dict(type="FilterAnnotations")]
    report = check_dataset(dataset)
    for text in (
        "1 boxes lie outside",
        "1 boxes have no area",
        "1 images are left out",
        "1 images are listed more than",
    ):
        assert any(warning.startswith(text) for warning in report.warnings), text
    assert (report.images, len(DATASETS.build(dict(dataset, pipeline=[])))) == (7, 6)
    assert "7 images (6 decoded) of ImageSets/Main/train.txt, 1 of them without objects" in str(report)


def test_unknown_class_lists_the_names_found(voc_root):
    with pytest.raises(DataError, match="no annotation has the class catt; the annotations have cat, dog, emu"):
        check_dataset(voc(voc_root, classes=("catt", "dog", "emu")))


def test_one_class_name_without_a_tuple(voc_root):
    with pytest.raises(DataError, match=r"the text 'cat' instead of a list: write \('cat',\)"):
        check_dataset(voc(voc_root, classes="cat"))


def test_several_problems_are_told_together(voc_root):
    first(voc_root).unlink()
    cut(sorted((voc_root / "JPEGImages").iterdir())[2])
    with pytest.raises(DataError) as error:
        check_dataset(voc(voc_root, classes=("catt", "dog", "emu")))
    for text in ("absent", "damaged", "catt"):
        assert text in str(error.value)


@pytest.mark.parametrize("box", [dict(xmax=10, xmin=10), dict(ymin=50, ymax=40)], ids=["zero width", "inverted"])
def test_boxes_without_area_are_counted_and_dropped(voc_root, box):
    edit_box(voc_root, **box)
    report = check_dataset(voc(voc_root))
    assert len(report.warnings) == 1 and report.warnings[0].startswith("1 boxes have no area")
    for test_mode in (False, True):
        dataset = DATASETS.build(voc(voc_root, test_mode=test_mode))
        assert [len(dataset.get_data_info(i)["instances"]) for i in range(6)] == [1, 2, 2, 2, 2, 2]


def test_stock_voc_dataset_must_be_told_to_drop_boxes_without_area(voc_root):
    edit_box(voc_root, xmin=10, xmax=10)
    stock = dict(voc(voc_root), type="mmdet.XMLDataset")
    with pytest.raises(DataError, match="FilterAnnotations"):
        check_dataset(stock)
    wrapper = dict(type="mmdet.MultiImageMixDataset", dataset=stock, pipeline=[dict(type="FilterAnnotations")])
    assert check_dataset(wrapper).warnings
    stock["filter_cfg"] = dict(bbox_min_size=1)
    assert check_dataset(stock).warnings
    flags = [one["ignore_flag"] for one in DATASETS.build(stock).get_data_info(0)["instances"]]
    assert flags == [1, 0]
    stock["pipeline"] = [dict(type="LoadAnnotations"), dict(type="mmnetaug.TrainOnDifficult")]
    with pytest.raises(DataError, match="bbox_min_size would have no effect"):
        check_dataset(stock)


def test_voc_warnings(voc_root):
    edit_box(voc_root, xmax=999)
    path = sorted((voc_root / "Annotations").iterdir())[1]
    path.write_text(path.read_text().replace("<width>128", "<width>130"))
    report = check_dataset(voc(voc_root, classes=("cat", "dog")))
    text = "\n".join(report.warnings)
    assert "1 boxes reach beyond their image" in text
    assert "1 images are not of the annotated size" in text
    assert "4 objects are of classes not in the config, and unused: emu (4)" in text
    assert len(str(report).splitlines()) == 4


def edit_json(root: Path, edit, split="train") -> None:
    path = root / f"annotations/instances_{split}2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "break_it, message",
    [
        (shutil.rmtree, "not there: annotations .*; images .*"),
        (lambda root: (root / "annotations/instances_train2017.json").write_text("[]"), "not a COCO annotation file"),
        (lambda root: first(root, "train2017").unlink(), "1 annotated images are absent"),
        (lambda root: cut(first(root, "train2017")), "1 images are damaged"),
        (lambda root: edit_json(root, lambda c: c["annotations"][0].update(image_id=99)), "1 annotations are of no"),
        (lambda root: edit_json(root, lambda c: c["categories"].reverse()), "in the order of .*: dog, cat"),
        (
            lambda root: edit_json(root, lambda c: c["categories"].append(dict(id=0, name="dog"))),
            r"share a name, .*: dog has \[\d+, 0\]\. Take",
        ),
        (lambda root: edit_json(root, lambda c: c["categories"].pop()), "no category of .* is called dog; it has cat"),
        (lambda root: edit_json(root, lambda c: c["annotations"].clear()), "no object is annotated"),
        (lambda root: edit_json(root, lambda c: c.update(images=[], annotations=[])), "no image in it"),
    ],
)
def test_coco_errors(coco_root, break_it, message):
    check_dataset(coco(coco_root))
    break_it(coco_root)
    with pytest.raises(DataError, match=message):
        check_dataset(coco(coco_root))


def edit_first(kind: str, **values):
    """An edit that changes the first entry of a list in a COCO file."""
    return lambda content: content[kind][0].update(values)


@pytest.mark.parametrize(
    "edit, place",
    [
        (edit_first("images", width=None), r"`null` - at `\$\.images\[0\]\.width`"),
        (edit_first("images", width="128"), r"`str` - at `\$\.images\[0\]\.width`"),
        (edit_first("images", height=0), r">= 1 - at `\$\.images\[0\]\.height`"),
        (edit_first("images", file_name=7), r"`int` - at `\$\.images\[0\]\.file_name`"),
        (edit_first("images", id=[1]), r"`array` - at `\$\.images\[0\]\.id`"),
        (edit_first("categories", name=None), r"`null` - at `\$\.categories\[0\]\.name`"),
        (edit_first("annotations", category_id=[1]), r"`array` - at `\$\.annotations\[0\]\.category_id`"),
        (edit_first("annotations", bbox=5), r"`int` - at `\$\.annotations\[0\]\.bbox`"),
        (edit_first("annotations", bbox=[]), r"of length 4 - at `\$\.annotations\[0\]\.bbox`"),
        (edit_first("annotations", bbox=[1, 2, 1e30, 4]), r"<= 1000000\.0 - at `\$\.annotations\[0\]\.bbox\[2\]`"),
        (edit_first("annotations", bbox=[1, 2, float("nan"), 4]), r"malformed: invalid character \(byte \d+\)"),
        (edit_first("annotations", area=float("inf")), r"malformed: invalid character \(byte \d+\)"),
        (edit_first("annotations", area="9"), r"`str` - at `\$\.annotations\[0\]\.area`"),
        (lambda content: content["annotations"][0].pop("area"), r"field `area` - at `\$\.annotations\[0\]`"),
        (lambda content: content["annotations"].__setitem__(1, []), r"`array` - at `\$\.annotations\[1\]`"),
        (lambda content: content.update(annotations=None), r"`null` - at `\$\.annotations`"),
        (lambda content: content.pop("images"), "missing required field `images`"),
    ],
)
def test_malformed_coco_files_are_one_error_that_says_where(coco_root, edit, place):
    edit_json(coco_root, edit)
    with pytest.raises(DataError, match=rf"instances_train2017\.json is not a COCO annotation file: .*{place}"):
        check_dataset(coco(coco_root))
    with pytest.raises(DataError, match=rf"instances_train2017\.json is not a COCO annotation file: .*{place}"):
        custom_config(coco_root)


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"info": ' + b"[" * 100_000, "recursion"),
        ('{"images": [], "categories": [], "annotations": []}'.encode("utf-16"), "can't decode"),
        (b'{"info": "\xff", "images": [], "categories": [], "annotations": []}', "can't decode"),
        (b"", "truncated"),
    ],
    ids=["nested", "utf-16", "latin-1", "empty"],
)
def test_coco_files_that_are_no_json_are_one_error(coco_root, content, message):
    (coco_root / "annotations/instances_train2017.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"instances_train2017\.json is not a COCO annotation file: .*{message}"):
        check_dataset(coco(coco_root))


@pytest.mark.parametrize("kind", ["images", "categories", "annotations"])
def test_ids_of_coco_files_must_be_unique(coco_root, kind):
    """Of two images with one id mmdet loses one without a word; of two annotations, it stops."""

    def edit(content):
        content[kind][1]["id"] = content[kind][0]["id"]

    edit_json(coco_root, edit)
    with pytest.raises(DataError, match=rf"1 ids of {kind} are given more than once in instances_train2017\.json"):
        check_dataset(coco(coco_root))


def test_every_object_that_mmdet_leaves_out_of_a_coco_file_is_counted(coco_root):
    def edit(content):
        first, second, third, fourth = content["annotations"][:4]
        first.update(ignore=1)
        second.update(bbox=[200, 10, 20, 20])
        third.update(area=0)
        fourth.update(bbox=[100, 10, 60, 20])

    edit_json(coco_root, edit)
    dataset = coco(coco_root, filter_cfg=dict(filter_empty_gt=True))
    report = check_dataset(dataset)
    for text in (
        "1 objects are marked with ignore",
        "1 boxes lie outside",
        "1 boxes have no area",
        "1 boxes reach beyo",
    ):
        assert any(warning.startswith(text) for warning in report.warnings), text
    assert any(warning.startswith("1 images are left out by filter_cfg") for warning in report.warnings)
    loaded = DATASETS.build(dataset)
    assert (report.images, len(loaded)) == (4, 3)
    assert report.objects.total() == sum(len(loaded.get_data_info(i)["instances"]) for i in range(3)) == 6 - 3


def test_an_annotation_numbered_0_is_told_where_it_is_measured(coco_root):
    """pycocotools marks what it found by the id of the annotation, and takes 0 for nothing."""
    edit_json(coco_root, lambda content: [one.update(id=i) for i, one in enumerate(content["annotations"])], "val")
    report = check_dataset(coco(coco_root, "val", test_mode=True), "val")
    assert any("1 annotations have the id 0" in warning for warning in report.warnings)
    file = str(coco_root / "annotations/instances_val2017.json")
    truth = COCO(file)
    for one in truth.dataset["annotations"]:
        one["iscrowd"] = 0
    found = truth.loadRes([dict(one, score=1.0) for one in truth.dataset["annotations"]])
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] < 1  # with everything found


def test_the_file_that_an_evaluator_reads_is_checked_as_well(coco_root):
    other = coco_root / "annotations/other.json"
    shutil.copy(coco_root / "annotations/instances_val2017.json", other)
    cfg = Config(
        dict(
            val_dataloader=dict(dataset=coco(coco_root, "val", test_mode=True)),
            val_evaluator=dict(type="CocoMetric", ann_file=str(other)),
        )
    )
    check_data(cfg)
    other.write_text(other.read_text().replace('"iscrowd"', '"crowd"'))
    with pytest.raises(DataError, match=r"ann_file of val_evaluator cannot be used: .*other\.json .*`iscrowd`"):
        check_data(cfg)


@pytest.mark.parametrize("size", [(0, 10), (10, -3)])
def test_coco_boxes_without_area_are_counted_and_dropped(coco_root, size):
    edit_json(coco_root, lambda c: c["annotations"][1]["bbox"].__setitem__(slice(2, 4), size))
    assert check_dataset(coco(coco_root)).warnings[0].startswith("1 boxes have no area")
    assert len(DATASETS.build(coco(coco_root)).get_data_info(0)["instances"]) == 1


def test_missing_coco_and_voc_say_where_they_come_from(tmp_path):
    with pytest.raises(DataError, match=r"cocodataset\.org"):
        check_dataset(coco(tmp_path / "absent", classes=COCO_CLASSES))
    with pytest.raises(DataError, match=r"host\.robots\.ox\.ac\.uk/pascal/VOC"):
        check_dataset(voc2012_style(tmp_path / "absent", "2007", "trainval"))


def test_large_sets_are_decoded_in_part_but_files_cut_short_are_found(voc_root, monkeypatch):
    monkeypatch.setattr(check_module, "DECODE_ALL_UP_TO", 4)
    report = check_dataset(voc(voc_root))
    assert (report.images, report.decoded) == (6, 2)
    for path in (voc_root / "JPEGImages").iterdir():
        cut(path)
    with pytest.raises(DataError, match="6 images are damaged"):
        check_dataset(voc(voc_root))
    monkeypatch.setattr(check_module, "OPEN_ALL_UP_TO", 5)
    with pytest.raises(DataError, match="2 images are damaged"):
        check_dataset(voc(voc_root))


@pytest.mark.parametrize("options", [{}, dict(progressive=True), dict(restart_marker_blocks=4), dict(subsampling=0)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damage_is_found_as_by_decoding_in_full(mode, options, tmp_path):
    """Although images are decoded at an eighth of their size."""
    from PIL import Image

    def seen(decode, path) -> tuple:
        try:
            return decode(path), ""
        except Exception as error:
            return type(error), str(error)

    def in_full(path) -> tuple[int, int]:
        with Image.open(path) as image:
            image.load()
            return image.size

    path, rng = tmp_path / "image.jpg", np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (9, 13, 3)).astype(np.uint8)).resize((131, 97)).convert(mode)
    noise.save(path, **options)
    whole = path.read_bytes()
    found = Counter()
    for _ in range(60):
        at, length = rng.integers(2, len(whole)), rng.integers(1, 60)
        inserted = [b"", rng.bytes(length), whole[at : at + length][::-1]][rng.integers(3)]
        path.write_bytes(whole[:at] if rng.random() < 0.3 else whole[:at] + inserted + whole[at + length :])
        outcome = seen(check_module._decode, str(path))
        assert outcome == seen(in_full, str(path))
        found[outcome[0]] += 1
    assert found[131, 97] and found[OSError]


def test_exif_turned_image_has_its_annotated_size(voc_root):
    from PIL import Image

    path = first(voc_root)
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert cv2.imread(str(path)).shape == (96, 128, 3)
    assert not check_dataset(voc(voc_root)).warnings


def test_progress_is_told_on_standard_error(voc_root, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "PROGRESS_EVERY", 0)
    check_dataset(voc(voc_root))
    captured = capsys.readouterr()
    assert re.search("checking the train images: .* 3/6 ", captured.err) and not captured.out


def classification(root: Path, split: str) -> dict:
    return dict(type="mmpretrain.CustomDataset", data_root=str(root), data_prefix=split)


def test_labels_without_names_are_checked_against_the_head(tmp_path):
    make_class_folders(tmp_path)
    lines = [
        f"{path.relative_to(tmp_path / 'train')} {number}" for number, path in enumerate(tmp_path.glob("train/*/*"))
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    dataset = dict(classification(tmp_path, "train"), ann_file="train.txt")
    cfg = Config(dict(model=dict(head=dict(num_classes=6)), train_dataloader=dict(dataset=dataset)))
    with pytest.raises(DataError, match="labels go from 0 to num_classes - 1 = 5: 6, 7 do not"):
        check_data(cfg)
    cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[dataset])
    with pytest.raises(DataError, match="labels go from 0 to num_classes - 1 = 5: 6, 7 do not"):
        check_data(cfg)
    cfg.model.head.num_classes = 8
    check_data(cfg)


def test_classification(tmp_path):
    make_class_folders(tmp_path)
    report = check_dataset(classification(tmp_path, "train"))
    assert report.classes == ("cat", "dog") and report.objects == {"cat": 4, "dog": 4} and report.decoded == 8


def test_classification_labels_must_be_below_the_number_of_classes(tmp_path):
    make_class_folders(tmp_path)
    (tmp_path / "train.txt").write_text("train/cat/000.jpg 0\ntrain/dog/000.jpg 2\n")
    listed = dict(type="mmpretrain.CustomDataset", data_root=str(tmp_path), ann_file="train.txt", classes=("a", "b"))
    with pytest.raises(DataError, match="1 labels are not below 2 classes"):
        check_dataset(listed)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (shutil.rmtree, "cannot be loaded(.|\n)*one folder per class"),
        (lambda root: cut(root / "train/cat/000.jpg"), "1 images are damaged"),
        (lambda root: [p.unlink() for p in root.glob("train/*/*")], "Found 0 files"),
        (lambda root: (root / "val/dog").rename(root / "val/duck"), "its classes are not those of train"),
    ],
)
def test_classification_errors(tmp_path, break_it, message):
    root = make_class_folders(tmp_path / "data")
    break_it(root)
    cfg = Config({f"{split}_dataloader": dict(dataset=classification(root, split)) for split in ("train", "val")})
    with pytest.raises(DataError, match=message):
        check_data(cfg)


def test_head_and_data_must_agree(voc_root):
    cfg = Config(dict(train_dataloader=dict(dataset=voc(voc_root)), model=dict(bbox_head=dict(num_classes=20))))
    with pytest.raises(DataError, match="num_classes=20, the data 3 classes"):
        check_data(cfg)
    cfg.model.bbox_head.num_classes = 3
    assert [report.name for report in check_data(cfg)] == ["train"]


def test_evaluator_file_must_exist(coco_root):
    cfg = Config(
        dict(
            val_dataloader=dict(dataset=coco(coco_root, "val", test_mode=True)),
            val_evaluator=dict(type="CocoMetric", ann_file=str(coco_root / "nowhere.json")),
        )
    )
    with pytest.raises(DataError, match=r"ann_file of val_evaluator is absent: .*nowhere.json"):
        check_data(cfg)


def test_unknown_dataset_type_is_an_error():
    with pytest.raises(DataError, match="NoSuchDataset"):
        check_dataset(dict(type="NoSuchDataset"))


# --- evaluation -------------------------------------------------------------------------------------------------------


def predictions(dataset, keep: Counter) -> list[dict]:
    """The truth of each image as its detections, except for the first ``keep[label]`` objects of a class."""
    samples = []
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        boxes = torch.tensor([one["bbox"] for one in info["instances"]]).float().reshape(-1, 4)
        labels = torch.tensor([one["bbox_label"] for one in info["instances"]]).long()
        kept = torch.ones(len(labels), dtype=torch.bool)
        for j, label in enumerate(labels.tolist()):
            if keep[label] > 0:
                keep[label] -= 1
                kept[j] = False
        samples.append(
            dict(
                gt_instances=dict(bboxes=boxes, labels=labels),
                ignored_instances=dict(bboxes=boxes[:0], labels=labels[:0]),
                pred_instances=dict(bboxes=boxes[kept], labels=labels[kept], scores=torch.ones(int(kept.sum()))),
            )
        )
    return samples


@pytest.mark.parametrize(
    "missed, expected", [({}, 1.0), ({0: 2}, (2 / 4 + 1 + 1) / 3), ({1: 4, 2: 1}, (1 + 3 / 4) / 3)]
)
def test_voc_metric_on_custom_classes(voc_root, missed, expected):
    dataset = DATASETS.build(voc(voc_root, test_mode=True))
    metric = VOCMetric(metric="mAP", eval_mode="area")
    metric.dataset_meta = dataset.metainfo
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dataset.metainfo
    evaluator.process(predictions(dataset, Counter(missed)))
    result = evaluator.evaluate(len(dataset))
    assert result["pascal_voc/mAP"] == pytest.approx(expected, abs=1e-6)
    assert result["pascal_voc/AP50"] == round(result["pascal_voc/mAP"], 3)
