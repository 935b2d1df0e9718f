"""The work of ``tools/compare.py``: draws the detections of several networks side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import Dataset

from mmnetaug.datasets import check_data, fill_config
from mmnetaug.errors import UserError
from mmnetaug.files import replaced_when_done

from .evaluation import build_tiny, load_tiny
from .load import require_test_data

CELL = 320  # pixels


def compare(args: argparse.Namespace, *configs: Config) -> None:
    """Runs the detectors and writes the picture: one row per image, one column per network."""
    if not args.out.endswith((".jpg", ".png")):
        raise UserError(f"--out must end with .jpg or .png, got {args.out}")
    columns: list[list[np.ndarray]] = []
    paths: list[str] = []
    for (label, config, checkpoint), cfg in zip(args.model, configs, strict=True):
        require_test_data(cfg, config)
        fill_config(cfg, args.data_root)
        check_data(cfg, ("test",))
        data = test_data(cfg, args.images)
        names = data.metainfo.get("classes") or ()
        plain, state = load_tiny(cfg, checkpoint, args.trust_checkpoint, names)
        samples = predict(data, build_tiny(plain, state), args.images)
        shown = [sample.img_path for sample in samples]
        if paths and shown != paths:
            raise UserError(f"{config} has other test images than {args.model[0][1]}")
        paths = shown
        if not columns:
            columns.append([draw(s, s.gt_instances, names, "annotated") for s in samples])
        predicted = [(s, s.pred_instances[s.pred_instances.scores >= args.score]) for s in samples]
        columns.append([draw(s, confident, names, label) for s, confident in predicted])
    rows = [np.concatenate(row, axis=1) for row in zip(*columns, strict=True)]
    suffix = Path(args.out).suffix
    _, encoded = cv2.imencode(suffix, np.concatenate(rows), [cv2.IMWRITE_JPEG_QUALITY, 85])
    with replaced_when_done(args.out) as temporary:
        temporary.write_bytes(encoded.tobytes())  # OpenCV's own writer does not report a full disk
    print(f"written: {args.out}")


def test_data(cfg: Config, indices: list[int]) -> Dataset:
    """Builds the test data set of a config, and checks that it has these images."""
    init_default_scope(cfg.get("default_scope") or "mmengine")
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    if absent := [index for index in indices if not 0 <= index < len(dataset)]:
        raise UserError(f"--images go from 0 to {len(dataset) - 1}, got {absent[0]}")
    return dataset


def predict(dataset: Dataset, model: torch.nn.Module, indices: list[int]) -> list:
    """Predictions for chosen images, in coordinates of the original image."""
    samples = []
    for index in indices:
        item = dataset[index]
        with torch.no_grad():
            [sample] = model.test_step({"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]})
        if not hasattr(sample, "pred_instances"):
            raise UserError(f"{type(model).__name__} is no detector")
        samples.append(sample)
    return samples


def draw(sample, instances, names: tuple[str, ...], label: str) -> np.ndarray:
    """One cell of the picture, (height, ``CELL``, 3)."""
    image = cv2.imread(sample.img_path)
    factor = CELL / image.shape[1]
    image = cv2.resize(image, (CELL, round(image.shape[0] * factor)), interpolation=cv2.INTER_AREA)
    boxes = instances.bboxes
    boxes = (boxes.tensor if hasattr(boxes, "tensor") else boxes).numpy()
    scores = instances.scores.tolist() if "scores" in instances else [None] * len(boxes)
    for box, kind, score in zip(boxes, instances.labels.tolist(), scores, strict=True):
        hue = np.uint8([[[180 * kind // len(names), 255, 230]]])
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].tolist()
        x1, y1, x2, y2 = (round(float(edge) * factor) for edge in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, 2)
        text = names[kind] + (f" {score:.2f}" if score is not None else "")
        cv2.putText(image, text, (x1, max(y1 - 4, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
    banner: np.ndarray = np.full((24, CELL, 3), 255, np.uint8)
    cv2.putText(banner, label, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return cv2.copyMakeBorder(np.concatenate([banner, image]), 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255,) * 3)
