"""What the check of a data set of COCO's size costs beside what reads the same annotation file anyway, and the start.

    python benchmarks/preflight.py                # with outlines, as in COCO's own file: about 460 MB
    python benchmarks/preflight.py --points 0     # boxes alone
    python benchmarks/preflight.py --start rtmdet_mbv3_w035_coco --root PATH      # until the first iteration
    python benchmarks/preflight.py --start rtmdet_mbv3_w035_custom --root PATH --voc

Makes 118 287 images and 5000 for validation (links to a few) with 860 001 and 36 781 boxes, or with ``--voc`` 16 551
and 4952 with 40 058 and 12 032, in a temporary folder. Each reader runs in a process of its own, with no more imported
than it needs, several times in turn; medians are printed. CPU time is that of all threads, without imports but for
``--start``, which runs ``tools/train.py CONFIG --data-root PATH`` until the first batch is loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this folder's coverage.py would pass for the package of that name

import numpy as np

ANN_FILE = "annotations/instances_train2017.json"
WIDTH, HEIGHT = 640, 480
PHOTOS = 8
"""Different files; ext4 takes 65 000 links to one."""

XML = """<annotation>
<filename>{name}.jpg</filename>
<size><width>640</width><height>480</height><depth>3</depth></size>
<segmented>0</segmented>
{objects}</annotation>
"""
OBJECT = """<object><name>{}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>{:.0f}</xmin><ymin>{:.0f}</ymin><xmax>{:.0f}</xmax><ymax>{:.0f}</ymax></bndbox></object>
"""


def make_photos(root: Path, rng: np.random.Generator) -> list[Path]:
    """Write JPEGs of 135 KB."""
    import cv2

    (root / "photos").mkdir(parents=True, exist_ok=True)
    paths = [root / f"photos/{number}.jpg" for number in range(PHOTOS)]
    for path in paths:
        coarse = cv2.resize(rng.uniform(0, 255, (HEIGHT // 16, WIDTH // 16, 3)), (WIDTH, HEIGHT))
        fine = cv2.GaussianBlur(rng.normal(0, 60, (HEIGHT, WIDTH, 3)), (0, 0), 1)
        cv2.imwrite(str(path), np.clip(coarse + fine, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return paths


def make_boxes(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Corners and extents, (count, 2) each."""
    extent = np.exp(rng.uniform(np.log(8), np.log(0.9 * HEIGHT), (count, 2))).round(2)
    return (rng.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - extent)).round(2), extent


def link(photos: list[Path], folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        os.link(photos[number % PHOTOS], folder / f"{name}.jpg")


def make_voc(root: Path) -> None:
    """Write images and annotations in VOC's layout."""
    from mmdet.datasets import VOCDataset

    rng = np.random.default_rng(0)
    photos, classes, first = make_photos(root, rng), VOCDataset.METAINFO["classes"], 1
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, images, boxes in (("val", 4952, 12_032), ("train", 16_551, 40_058)):
        names = [f"{number:06d}" for number in range(first, first + images)]
        first += images
        link(photos, root / "JPEGImages", names)
        objects = [""] * images
        for number, (corner, extent) in enumerate(zip(*make_boxes(boxes, rng), strict=True)):
            name = classes[rng.integers(len(classes))]
            objects[number % images] += OBJECT.format(name, *(corner + 1), *(corner + extent))
        for name, text in zip(names, objects, strict=True):
            (root / f"Annotations/{name}.xml").write_text(XML.format(name=name, objects=text))
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))


def make_coco(root: Path, images: int, boxes: int, points: int) -> None:
    """Write images and annotations in COCO's layout; ``points`` is the number of corners of an object's outline."""
    rng = np.random.default_rng(0)
    photos = make_photos(root, rng)
    (root / "annotations").mkdir()
    make_coco_split(root, "val2017", photos, range(images + 1, images + 5001), 36_781, points, rng)
    make_coco_split(root, "train2017", photos, range(1, images + 1), boxes, points, rng)


def make_coco_split(
    root: Path, split: str, photos: list[Path], numbers: range, boxes: int, points: int, rng: np.random.Generator
) -> None:
    from mmdet.datasets import CocoDataset

    link(photos, root / split, [f"{number:012d}" for number in numbers])
    corner, extent = make_boxes(boxes, rng)
    owners, ids = np.sort(rng.integers(numbers.start, numbers.stop, boxes)), rng.permutation(boxes) + 1
    categories = rng.integers(1, 81, boxes)
    with open(root / "unfinished.json", "w") as file:
        listed = [
            dict(
                license=1,
                file_name=f"{number:012d}.jpg",
                coco_url=f"http://images.cocodataset.org/{split}/{number:012d}.jpg",
                height=HEIGHT,
                width=WIDTH,
                date_captured="2013-11-14 11:18:45",
                flickr_url="http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
                id=number,
            )
            for number in numbers
        ]
        classes = [dict(supercategory="", id=i, name=name) for i, name in enumerate(CocoDataset.METAINFO["classes"], 1)]
        head = json.dumps(dict(info={}, licenses=[], images=listed, categories=classes))
        file.write(head[:-1] + ', "annotations": [')
        for i in range(boxes):
            outline = (corner[i] + rng.uniform(0, 1, (points, 2)) * extent[i]).round(2).ravel().tolist()
            crowd = i % 85 == 0  # as many as in COCO
            runs = dict(counts=rng.integers(1, 500, 200).tolist(), size=[HEIGHT, WIDTH]) if crowd else [outline]
            one = dict(
                segmentation=runs if points else [],
                area=float(extent[i].prod().round(4)),
                iscrowd=int(crowd),
                image_id=int(owners[i]),
                bbox=[*corner[i].tolist(), *extent[i].tolist()],
                category_id=int(categories[i]),
                id=int(ids[i]),
            )
            file.write(("" if i == 0 else ", ") + json.dumps(one))
        file.write("]}")
    os.replace(root / "unfinished.json", root / f"annotations/instances_{split}.json")


def json_load(root: Path) -> Callable[[], Any]:
    def run():
        with open(root / ANN_FILE) as file:
            return json.load(file)

    return run


def pycocotools(root: Path) -> Callable[[], Any]:
    from pycocotools.coco import COCO

    return lambda: COCO(str(root / ANN_FILE))


def mmdet(root: Path) -> Callable[[], Any]:
    from mmengine.registry import DATASETS

    cfg = coco_config(root)
    return lambda: DATASETS.build(cfg.train_dataloader.dataset)


def annotations(root: Path) -> Callable[[], Any]:
    from mmnetaug.datasets.coco import read_coco

    return lambda: read_coco(root / ANN_FILE)


def check(root: Path) -> Callable[[], Any]:
    from mmnetaug.datasets import check_data

    cfg = coco_config(root)
    return lambda: check_data(cfg, ("train",))


def coco_config(root: Path) -> Any:
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    import mmnetaug  # noqa: F401  (registers everything)
    from mmnetaug.datasets import set_data_root

    cfg = Config.fromfile(ROOT / "configs/_base_/coco.py")
    init_default_scope("mmdet")
    set_data_root(cfg, root)
    return cfg


READERS = {
    "json.load": json_load,
    "pycocotools.COCO": pycocotools,
    "mmdet's CocoDataset": mmdet,
    "this check, annotations decoded": annotations,
    "this check, whole": check,
}


def measure(name: str, root: Path) -> dict[str, float]:
    """One reader's cost, in this process."""
    run = READERS[name](root)
    before = peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    kept = run()
    figures = {"CPU s": time.process_time() - cpu, "wall s": time.perf_counter() - wall}
    peak = peak_mb()
    del kept
    return {**figures, "peak MB": peak, "peak without imports MB": peak - before}


def start(config: str, root: Path) -> None:
    """Runs the tool until its first iteration, and prints what that took in all."""
    gc.disable()  # as the tool imports it
    from mmengine.runner import EpochBasedTrainLoop

    from mmnetaug.apis import cli

    def stop(*args: Any) -> None:
        print(json.dumps({"CPU s": time.process_time(), "peak MB": peak_mb()}))
        raise SystemExit

    gc.enable()
    EpochBasedTrainLoop.run_iter = stop
    with tempfile.TemporaryDirectory() as work_dir:
        sys.argv = ["train.py", str(cli.find_config(config)), "--data-root", str(root), "--work-dir", work_dir]
        runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")


def peak_mb() -> float:
    """The most memory that this process has had; getrusage counts what the process that started it had."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def compare(root: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Medians of each reader's costs."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in READERS}
    for number in range(repeats):
        for name in READERS:
            command = [sys.executable, __file__, "--measure", name, "--root", str(root)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs[name].append(json.loads(out.splitlines()[-1]))
            print(f"round {number + 1}: {name} {out.splitlines()[-1]}", file=sys.stderr)
    return {name: {key: statistics.median(run[key] for run in of) for key in of[0]} for name, of in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--boxes", type=int, default=860_001)
    parser.add_argument("--points", type=int, default=22, help="corners of an object's outline")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--root", type=Path, help="folder of the set; made there, or used if it is there already")
    parser.add_argument("--start", metavar="CONFIG", help="start training by this config instead")
    parser.add_argument("--voc", action="store_true", help="a set of VOC's size, for --start")
    parser.add_argument("--measure", choices=READERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.root)))
        return
    if args.start and args.root and args.root.is_dir():
        start(args.start, args.root)
    with tempfile.TemporaryDirectory() as temporary:
        root = args.root or Path(temporary) / "coco"
        if not root.is_dir():
            make_voc(root) if args.voc else make_coco(root, args.images, args.boxes, args.points)
        if args.start:  # in a process that has not made the set
            command = [sys.executable, __file__, "--start", args.start, "--root", str(root)]
            sys.exit(subprocess.run(command, check=False).returncode)
        figures = compare(root, args.repeats)
        print(f"annotation file: {(root / ANN_FILE).stat().st_size / 1e6:.0f} MB")
    print("| " + " | ".join(["reader", *figures["json.load"]]) + " |\n|---|---|---|---|---|")
    for name, values in figures.items():
        print("| " + " | ".join([name, *(f"{value:.1f}" for value in values.values())]) + " |")
    alone, ours = figures["pycocotools.COCO"]["CPU s"], figures["this check, whole"]["CPU s"]
    loaded = figures["mmdet's CocoDataset"]["CPU s"]
    print(f"check + pycocotools: {(ours + alone) / alone:.2f} x pycocotools alone (CPU)")
    print(f"check + CocoDataset: {(ours + loaded) / alone:.2f} x pycocotools, {1 + ours / loaded:.2f} x CocoDataset")


if __name__ == "__main__":
    main()
