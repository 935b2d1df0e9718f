"""What the check of a data set of COCO's size costs beside what reads the same annotation file anyway.

    python benchmarks/preflight.py                # with outlines, as in COCO's own file: about 430 MB
    python benchmarks/preflight.py --points 0     # boxes alone

Makes 118 000 images (links to a few small ones) with 860 000 boxes in a temporary folder. Each reader runs in a process
of its own, with no more imported than it needs, several times in turn; medians are printed. CPU time is that of all
threads, without imports.
"""

from __future__ import annotations

import argparse
import json
import os
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
WIDTH, HEIGHT = 64, 48
MOST_LINKS = 50_000  # to one file; ext4 takes 65 000


def make_set(root: Path, images: int, boxes: int, points: int) -> None:
    """Write images and annotations in COCO's layout; ``points`` is the number of corners of an object's outline."""
    import cv2
    from mmdet.datasets import CocoDataset

    rng = np.random.default_rng(0)
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    names = [f"{number:012d}.jpg" for number in range(1, images + 1)]
    for number, name in enumerate(names):
        if number % MOST_LINKS == 0:
            cv2.imwrite(str(root / "train2017" / name), noise)
        else:
            first = names[number - number % MOST_LINKS]
            os.link(root / "train2017" / first, root / "train2017" / name)
    extent = rng.uniform(2, 30, (boxes, 2)).round(2)
    corner = (rng.uniform(0, 1, (boxes, 2)) * ([WIDTH, HEIGHT] - extent)).round(2)
    owners, ids = np.sort(rng.integers(1, images + 1, boxes)), rng.permutation(boxes) + 1
    categories = rng.integers(1, 81, boxes)
    with open(root / "unfinished.json", "w") as file:
        listed = [
            dict(
                license=1,
                file_name=name,
                coco_url=f"http://images.cocodataset.org/train2017/{name}",
                height=HEIGHT,
                width=WIDTH,
                date_captured="2013-11-14 11:18:45",
                flickr_url="http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
                id=number,
            )
            for number, name in enumerate(names, 1)
        ]
        classes = [dict(supercategory="", id=i, name=name) for i, name in enumerate(CocoDataset.METAINFO["classes"], 1)]
        head = json.dumps(dict(info={}, licenses=[], images=listed, categories=classes))
        file.write(head[:-1] + ', "annotations": [')
        for i in range(boxes):
            outline = (corner[i] + rng.uniform(0, 1, (points, 2)) * extent[i]).round(2).ravel().tolist()
            one = dict(
                segmentation=[outline] if points else [],
                area=float(extent[i].prod().round(4)),
                iscrowd=0,
                image_id=int(owners[i]),
                bbox=[*corner[i].tolist(), *extent[i].tolist()],
                category_id=int(categories[i]),
                id=int(ids[i]),
            )
            file.write(("" if i == 0 else ", ") + json.dumps(one))
        file.write("]}")
    os.replace(root / "unfinished.json", root / ANN_FILE)


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
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--points", type=int, default=27, help="corners of an object's outline")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--root", type=Path, help="folder of the set; made there, or used if it is there already")
    parser.add_argument("--measure", choices=READERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.root)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = args.root or Path(temporary) / "coco"
        if not (root / ANN_FILE).is_file():
            make_set(root, args.images, args.boxes, args.points)
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
