"""Visualisation: a backend that writes to TensorBoard if that is installed, and pictures of detections.

Configs cannot check for TensorBoard themselves: MMEngine treats a config with imports as a lazy config.
"""

from __future__ import annotations

import importlib.util

import mmcv
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import VISUALIZERS
from mmengine.visualization import TensorboardVisBackend, Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend

from mmnetaug.registry import VISBACKENDS


class _NoVisBackend(BaseVisBackend):
    """Ignores everything."""

    experiment = None

    def _init_env(self) -> None:
        """Does nothing."""


@VISBACKENDS.register_module()
def TensorboardIfInstalled(save_dir: str) -> BaseVisBackend:
    """Builds MMEngine's ``TensorboardVisBackend``, or a backend that writes nothing if tensorboard is missing.

    Args:
        save_dir: Folder for the event files.
    """
    backend = TensorboardVisBackend if importlib.util.find_spec("tensorboard") else _NoVisBackend
    return backend(save_dir)


def detection_visualizer(name: str, classes: list[str]) -> Visualizer:
    """mmdet's visualizer, for :func:`draw_detections`.

    Args:
        name: MMEngine keeps one visualizer for each.
        classes: Their names.
    """
    visualizer = VISUALIZERS.build(dict(type="mmdet.DetLocalVisualizer", name=name))
    visualizer.dataset_meta = dict(classes=classes)
    return visualizer


def draw_detections(
    visualizer: Visualizer, image: np.ndarray, sample: DetDataSample, threshold: float
) -> tuple[np.ndarray, DetDataSample]:
    """Draws the detections of an image.

    Args:
        visualizer: Of :func:`detection_visualizer`.
        image: (H, W, 3), BGR.
        sample: With ``pred_instances`` in pixels of the image.
        threshold: The lowest score that is drawn.

    Returns:
        The picture, BGR and as large as the image, and the sample with the detections drawn, on the CPU.
    """
    height, width = image.shape[:2]
    sample = sample.cpu()
    found = sample.pred_instances[sample.pred_instances.scores >= threshold]
    edges = torch.tensor([width, height, width, height])  # Matplotlib zooms out to show boxes beyond the image
    sample.pred_instances = found.clone()
    sample.pred_instances.bboxes = found.bboxes.clamp(edges * 0, edges)
    visualizer.add_datasample("", mmcv.bgr2rgb(image), sample, draw_gt=False, pred_score_thr=-1)
    sample.pred_instances = found
    return mmcv.rgb2bgr(visualizer.get_image()), sample
