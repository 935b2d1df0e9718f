"""The work of ``tools/predict.py``: runs a checkpoint or an exported file on images, videos or a camera."""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from mmnetaug.config import first_pipeline, leaves, type_name, without_netaug
from mmnetaug.datasets import fill_config, set_classes
from mmnetaug.errors import UserError
from mmnetaug.files import lies_in, replaced_when_done
from mmnetaug.models.tensor_mode import is_detector
from mmnetaug.terminal import progress
from mmnetaug.visualization import detection_visualizer, draw_detections

from .build import build_model, without_teacher
from .cli import EXPORTED, VIDEOS, is_camera
from .evaluation import running_exported
from .input_size import set_input_size
from .load import require_test_data
from .preflight import check_classes, check_weights


def predict(args: argparse.Namespace, cfg: Config) -> dict[str, Any]:
    """Predicts every input; returns the number of images and the inputs that failed."""
    require_test_data(cfg, args.config)
    if args.size:
        set_input_size(cfg, args.size, ("test",))
    init_default_scope(cfg.get("default_scope") or "mmdet")
    out = Path(args.out_dir)
    with contextlib.ExitStack() as stack:
        model, classes = open_network(args, cfg, stack)
        results = Results(classes, is_detector(model), args.score_thr)
        # images are read here and have no annotations
        transforms = first_pipeline(cfg.test_dataloader.dataset) or []
        unused = ("LoadImageFromFile", "LoadAnnotations")
        pipeline = Compose([step for step in transforms if type_name(step) not in unused])
        films = [path for path in args.inputs if path.suffix.lower() in VIDEOS]
        frames = [max(1, mmcv.VideoReader(str(path)).frame_cnt) for path in films]  # as their headers say
        total = len(args.inputs) - len(films) + sum(frames)
        bar = stack.enter_context(progress("predicting, images", total))

        def draw(image: np.ndarray, file: str) -> np.ndarray:
            picture = results.add(infer(model, pipeline, image, file, len(results.images) + 1), image, file)
            bar.update()
            return picture

        for number, path in enumerate(args.inputs, 1):
            try:
                if is_camera(path) or path.suffix.lower() in VIDEOS:
                    draw_video(path, out / f"{number:06}_{path.stem}.mp4", draw)
                else:
                    image = read_image(path)
                    with replaced_when_done(out / f"{number:06}_{path.stem}.png") as temporary:
                        mmcv.imwrite(draw(image, str(path)), str(temporary))
            except UnreadableError as error:
                print(f"error: {path} cannot be read: {error}", file=sys.stderr)
                args.failed.append(str(path))
    results.write(out)
    print(f"{len(results.images)} images predicted, {len(args.failed)} files not readable; results in {out}")
    return {"images": len(results.images), "failed": args.failed, "out_dir": str(out)}


class UnreadableError(Exception):
    """An input that cannot be decoded; the others are predicted all the same."""


def read_image(path: Path) -> np.ndarray:
    """Reads an image (H, W, 3), BGR."""
    try:
        image = mmcv.imread(path)
    except (OSError, ValueError, cv2.error) as error:  # cv2.error: an empty file
        raise UnreadableError(error) from error
    if image is None:
        raise UnreadableError("it is no image that OpenCV can read")
    return image


def draw_video(path: Path, target: Path, draw: Callable[[np.ndarray, str], np.ndarray]) -> None:
    """Predicts a video or the pictures of a camera, and writes an annotated video of the same size and rate.

    A camera is read until it gives no more pictures or Ctrl-C is pressed.
    """
    video = cv2.VideoCapture(int(str(path)) if is_camera(path) else str(path))
    read, frame = video.read()
    if not read:
        what = "there is no such camera" if is_camera(path) else "it is no video that OpenCV can read"
        raise UnreadableError(what)
    size = frame.shape[1::-1]
    rate = video.get(cv2.CAP_PROP_FPS) or 25
    if is_camera(path):
        print("reading the camera: Ctrl-C ends it and writes the results", file=sys.stderr)
    with replaced_when_done(target) as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        try:
            for number in itertools.count():
                if not read:
                    break
                writer.write(cv2.resize(draw(frame, f"{path}#{number}"), size))
                read, frame = video.read()
        except KeyboardInterrupt:
            if not is_camera(path):
                raise
        finally:
            writer.release()
            video.release()


class Results:
    """Gathers predictions, draws them, and writes COCO JSON (of detections) and CSV.

    Args:
        classes: Their names.
        detects: Whether the network is a detector; otherwise it is a classifier.
        threshold: Lowest score of a detection that is kept.
    """

    def __init__(self, classes: list[str], detects: bool, threshold: float) -> None:
        self.classes, self.detects, self.threshold = classes, detects, threshold
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.rows: list[list[Any]] = []
        if detects:
            self.visualizer = detection_visualizer("predict", classes)
        else:
            self.visualizer = VISUALIZERS.build(dict(type="mmpretrain.UniversalVisualizer", name="predict"))

    def add(self, sample: Any, image: np.ndarray, file: str) -> np.ndarray:
        """Adds the data sample of an image (H, W, 3), BGR, and returns the annotated image."""
        height, width = image.shape[:2]
        self.images.append(dict(id=len(self.images) + 1, file_name=file, height=height, width=width))
        if self.detects:
            picture, sample = draw_detections(self.visualizer, image, sample, self.threshold)
            self._add_detections(sample.pred_instances.numpy(), file)
            return picture
        for label in sample.pred_score.topk(min(5, len(self.classes))).indices.tolist():
            self.rows.append([file, self.classes[label], float(sample.pred_score[label])])
        self.visualizer.visualize_cls(mmcv.bgr2rgb(image), sample, classes=self.classes, draw_gt=False)
        return mmcv.rgb2bgr(self.visualizer.get_image())

    def _add_detections(self, found: Any, file: str) -> None:
        for box, score, label in zip(found.bboxes, found.scores, found.labels, strict=True):
            x, y, w, h = (float(v) for v in (*box[:2], *(box[2:] - box[:2])))
            self.annotations.append(
                dict(id=len(self.annotations) + 1, image_id=len(self.images), category_id=int(label) + 1)
                | dict(bbox=[x, y, w, h], area=w * h, iscrowd=0, score=float(score))
            )
            self.rows.append([file, self.classes[label], float(score), x, y, w, h])

    def write(self, folder: Path) -> None:
        """Writes ``predictions.csv`` and ``predictions.json``."""
        header = ["file", "class", "score", *(["x", "y", "width", "height"] if self.detects else [])]
        with replaced_when_done(folder / "predictions.csv") as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([header, *self.rows])
        categories = [dict(id=i, name=name) for i, name in enumerate(self.classes, 1)]
        coco = dict(images=self.images, annotations=self.annotations, categories=categories)
        content = coco if self.detects else [dict(zip(header, row, strict=True)) for row in self.rows]
        with replaced_when_done(folder / "predictions.json") as temporary:
            temporary.write_text(json.dumps(content))


def open_network(args: argparse.Namespace, cfg: Config, stack: contextlib.ExitStack) -> tuple[nn.Module, list[str]]:
    """Builds the network for inference, until the stack is closed; returns it and its class names.

    A config that takes its classes from the data gets those of the checkpoint, so that the data need not be there.
    """
    exported = args.checkpoint.endswith(EXPORTED)
    checkpoint = {}
    if not exported:
        trusted = args.trust_checkpoint or lies_in(args.checkpoint, cfg.work_dir)
        checkpoint = args.checkpoints.read(args.checkpoint, trusted)
    trained = list((checkpoint.get("meta", {}).get("dataset_meta") or {}).get("classes") or ())
    if cfg.get("data_layout") == "auto" and trained and not args.data_root:
        set_classes(cfg, trained)
    else:
        fill_config(cfg, args.data_root)
    dataset = cfg.test_dataloader.dataset
    classes = list((next(leaves(dataset)).get("metainfo") or {}).get("classes") or ())
    if exported:
        cfg.model = without_netaug(cfg.model)
        model = build_model(cfg)
        stack.enter_context(running_exported(cfg, model, args.checkpoint, args.tflite_python))
    else:
        model = build_model(without_teacher(cfg))
        check_weights(model, checkpoint, args.checkpoint, complete=True)
        check_classes(checkpoint, classes, args.checkpoint)
        load_checkpoint(model, args.checkpoint, map_location="cpu")  # as read and checked above
        classes = classes or trained
    if not classes:  # by the data set's type or folders
        try:
            classes = list(DATASETS.build(dataset).metainfo.get("classes") or ())
        except OSError as error:
            raise UserError(
                f"the names of the classes are unknown, and the test data are not there: {error}"
            ) from error
    if not classes:
        raise UserError(f"neither {args.config} nor {args.checkpoint} names the classes: set metainfo of the data set")
    return model.to(get_device()).eval(), classes


def infer(model: nn.Module, pipeline: Compose, image: np.ndarray, file: str, number: int) -> Any:
    """Predicts a BGR image; returns the data sample."""
    shape = image.shape[:2]
    data = pipeline(dict(img=image, img_path=file, img_id=number, img_shape=shape, ori_shape=shape))
    with torch.no_grad():
        return model.test_step(dict(inputs=[data["inputs"]], data_samples=[data["data_samples"]]))[0].cpu()
