"""Demo data: handwritten digits on textured scenes, a detection data set without a download.

scikit-learn includes 1797 real 8x8 scans of handwritten digits. :func:`generate` enlarges them, draws one to five of
them at random scales, positions and contrasts on 160x160 scenes, and writes these in Pascal VOC layout.
:class:`DigitScenes` calls it at first use.
"""

import os
import shutil
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np

from mmnetaug.datasets import VOCLayoutDataset
from mmnetaug.registry import DATASETS

SCENE_SIZE = 160  # pixels, both sides
SCENES = {"train": 1500, "test": 300}
DIGIT_SIZE = (32, 80)  # pixels, height of the ink
MAX_OVERLAP = 0.1  # of the smaller box
VERSION = "2"  # to be increased when the same seed gives other scenes


def split_scans(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Splits the scans into four fifths for training and one fifth for testing, stratified by digit.

    All data sets of these scans use this split, so that no test contains a training scan.

    Args:
        seed: Seed of the split.

    Returns:
        For ``'train'`` and ``'test'``, the scans (N, 8, 8), float64 ink in [0, 16], and their digits (N,), int64.
    """
    from sklearn.datasets import load_digits  # which nothing else needs
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        scans.images, scans.target, test_size=0.2, stratify=scans.target, random_state=seed
    )
    return {"train": (train_x, train_y), "test": (test_x, test_y)}


def textured_background(rng: np.random.Generator, size: int = SCENE_SIZE) -> np.ndarray:
    """Draws a scene without digits: a base colour with smooth colour noise at several scales.

    Args:
        rng: Source of randomness.
        size: Side of the square scene in pixels.

    Returns:
        (size, size, 3) float32 in [0, 255].
    """
    scene = np.full((size, size, 3), rng.uniform(30, 130), np.float32) + rng.uniform(-25, 25, 3)
    amplitude = rng.uniform(4, 14)
    for cells in (2, 5, 12, 40, size):
        noise = rng.normal(0, amplitude, (cells, cells, 1)) + rng.normal(0, amplitude / 2, (cells, cells, 3))
        scene += cv2.resize(noise.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(scene, 0, 255).astype(np.float32)


def enlarge_scan(scan: np.ndarray, height: int, aspect: float) -> np.ndarray:
    """Enlarges one scan to smooth strokes.

    Args:
        scan: (8, 8) ink in [0, 16].
        height: Height of the ink in pixels, approximately.
        aspect: Factor of the width.

    Returns:
        (h, w) float32 opacity in [0, 1], cropped to the ink.
    """
    rows, cols = np.nonzero(scan.max(axis=1))[0], np.nonzero(scan.max(axis=0))[0]
    ink = scan[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].astype(np.float32) / 16
    ink = np.pad(ink, 1)  # so that strokes fade out at the edge
    scale = height / (ink.shape[0] - 2)
    size = (round(ink.shape[1] * scale * aspect), round(ink.shape[0] * scale))
    soft = cv2.resize(ink, size, interpolation=cv2.INTER_CUBIC)
    opacity = np.clip((soft - 0.25) / 0.4, 0, 1)
    inked = opacity > 0.25
    rows, cols = np.nonzero(inked.any(axis=1))[0], np.nonzero(inked.any(axis=0))[0]
    return opacity[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def draw_digits(
    scene: np.ndarray, scans: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one to five random scans into a scene, in place.

    Args:
        scene: (H, W, 3) float32 in [0, 255], changed in place.
        scans: (N, 8, 8) ink in [0, 16] to choose from.
        labels: (N,) their digits.
        rng: Source of randomness.

    Returns:
        Boxes (n, 4), int64 ``x1, y1, x2, y2`` in pixels with x2 and y2 exclusive, tight to the ink, and digits (n,).
    """
    boxes: list[tuple[int, int, int, int]] = []
    digits = []
    for _ in range(rng.integers(1, 6)):
        index = rng.integers(len(scans))
        size = np.exp(rng.uniform(*np.log(DIGIT_SIZE)))  # as many small digits as large ones
        opacity = enlarge_scan(scans[index], round(size), rng.uniform(0.85, 1.15))[..., None]
        box = _free_place(opacity.shape, scene.shape, boxes, rng)
        if box is None:
            continue
        x1, y1, x2, y2 = box
        patch = scene[y1:y2, x1:x2]
        ground = patch.mean(axis=(0, 1))
        contrast = rng.uniform(60, 130)  # ink is lighter than its background
        colour = np.clip(ground + contrast + rng.uniform(-20, 20, 3), 0, 255)
        patch += opacity * (colour - patch)
        boxes.append(box)
        digits.append(labels[index])
    return np.array(boxes, np.int64).reshape(-1, 4), np.array(digits, np.int64)


def _free_place(shape: tuple, scene_shape: tuple, taken: list, rng: np.random.Generator) -> tuple | None:
    """Finds a place for a patch with little overlap with others; None after 50 tries."""
    h, w = shape[:2]
    for _ in range(50):
        x1, y1 = int(rng.integers(scene_shape[1] - w + 1)), int(rng.integers(scene_shape[0] - h + 1))
        box = (x1, y1, x1 + w, y1 + h)
        if all(_overlap(box, other) <= MAX_OVERLAP for other in taken):
            return box
    return None


def _overlap(a: tuple, b: tuple) -> float:
    """Intersection of two boxes over the area of the smaller one."""
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return inner / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))


def generate(out: str | Path, scenes: dict[str, int] | None = None, seed: int = 0) -> None:
    """Writes the scenes in Pascal VOC layout: ``JPEGImages/``, ``Annotations/``, ``ImageSets/Main/{train,test}.txt``.

    They are written to a temporary folder beside ``out``, which is renamed at the end: an interrupted run leaves no
    partial data set, and of several concurrent processes the first to finish wins.
    The same seed gives the same bytes, for given versions of numpy, scikit-learn and OpenCV.

    Args:
        out: Folder to create. It must not exist, unless another process creates it in the meantime.
        scenes: Number of scenes per split; 1500 for training and 300 for testing by default.
        seed: Seed of the split of the scans and of the scenes.

    Raises:
        FileExistsError: ``out`` exists.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists already: remove it first to write the digit scenes anew.")
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        tmp.chmod(0o755)  # mkdtemp's folders are readable by their owner only
        _write_scenes(tmp, scenes or SCENES, seed)
        try:
            os.rename(tmp, out)
        except OSError:
            if not (out / "version.txt").is_file():  # not another process that finished first
                raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _write_scenes(root: Path, scenes: dict[str, int], seed: int) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part, (split, (scans, labels)) in enumerate(split_scans(seed).items()):
        names = [f"{split}_{i:05d}" for i in range(scenes[split])]
        for i, name in enumerate(names):
            rng = np.random.default_rng([seed, part, i])  # a scene does not depend on how many come before it
            scene = textured_background(rng)
            boxes, digits = draw_digits(scene, scans, labels, rng)
            _, jpeg = cv2.imencode(".jpg", scene.round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])
            (root / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg.tobytes())
            _write_annotation(root / "Annotations" / f"{name}.xml", boxes, digits)
        (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "version.txt").write_text(f"{VERSION}\n")


def _write_annotation(path: Path, boxes: np.ndarray, digits: np.ndarray) -> None:
    """Writes one VOC annotation: pixels count from 1, and boxes include the last row and column."""
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = f"{path.stem}.jpg"
    size = ET.SubElement(root, "size")
    for tag, value in (("width", SCENE_SIZE), ("height", SCENE_SIZE), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    for (x1, y1, x2, y2), digit in zip(boxes, digits, strict=True):
        item = ET.SubElement(root, "object")
        ET.SubElement(item, "name").text = str(digit)
        ET.SubElement(item, "difficult").text = "0"
        box = ET.SubElement(item, "bndbox")
        for tag, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ET.SubElement(box, tag).text = str(value)
    ET.indent(root)
    ET.ElementTree(root).write(path)


def ensure_digits(root: str | Path) -> None:
    """Writes the digit scenes to ``root`` unless they exist; safe for concurrent processes.

    Raises:
        FileExistsError: ``root`` holds something else, or scenes of another version of this module.
    """
    root = Path(root)
    if not root.exists():
        generate(root)
    version = root / "version.txt"
    if not version.is_file() or version.read_text().strip() != VERSION:
        raise FileExistsError(
            f"{root} exists but does not hold the digit scenes of this version of mmnetaug: remove that folder (they "
            "are written again at the next start), or set another data_root."
        )


@DATASETS.register_module()
class DigitScenes(VOCLayoutDataset):
    """Handwritten digits on textured 160x160 scenes, written to ``data_root`` at first use.

    Args:
        data_root: Folder of the scenes; created when absent.
        split: ``'train'`` (1500 scenes) or ``'test'`` (300, of other scans).
        **kwargs: See ``mmdet.XMLDataset``.

    Raises:
        FileExistsError: ``data_root`` holds something else.
    """

    METAINFO = {  # noqa: RUF012 (how MMEngine's datasets declare it)
        "classes": tuple("0123456789"),
        "palette": [
            (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
            (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212),
        ],
    }  # fmt: skip

    def __init__(self, data_root: str = "data/digits", split: str = "train", **kwargs) -> None:
        if split not in SCENES:
            raise ValueError(f"split must be one of {', '.join(SCENES)}, not {split!r}.")
        ensure_digits(data_root)
        super().__init__(
            data_root=str(data_root),
            ann_file=f"ImageSets/Main/{split}.txt",
            data_prefix=dict(sub_data_root=""),
            **kwargs,
        )
