"""Shows what the best network so far detects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend

from mmnetaug.files import replaced_when_done
from mmnetaug.registry import HOOKS
from mmnetaug.visualization import detection_visualizer, draw_detections

COLUMNS = 4
EDGE = 320  # pixels of one image


@HOOKS.register_module()
class BestPictureHook(Hook):
    """Draws the detections on some validation images each time that ``CheckpointHook`` keeps a better checkpoint.

    The picture is ``best.png`` in the work directory. Backends of the run's visualizer that write elsewhere, such as
    TensorBoard, get it too.

    Args:
        images: How many: the first ones of the validation data.
        threshold: The lowest score that is drawn.
    """

    priority = "LOWEST"  # after CheckpointHook

    def __init__(self, images: int = 8, threshold: float = 0.3) -> None:
        self.images, self.threshold = images, threshold
        self._samples: list[Any] = []

    def before_val_epoch(self, runner: Runner) -> None:
        """Notes which checkpoints are the best ones before this validation."""
        self._samples, self._before = [], _best(runner)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Keeps the predictions on the first images."""
        if is_main_process():
            self._samples += list(outputs or ())[: self.images - len(self._samples)]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draws them if a better checkpoint was kept."""
        if not self._samples or _best(runner) == self._before:
            return
        visualizer = detection_visualizer("best", list(runner.val_dataloader.dataset.metainfo["classes"]))
        pictures = []
        for sample in self._samples:
            picture, _ = draw_detections(visualizer, mmcv.imread(sample.img_path), sample, self.threshold)
            picture = mmcv.imrescale(picture, (EDGE, EDGE))
            pictures.append(mmcv.impad(picture, shape=(EDGE, EDGE), pad_val=(255, 255, 255)))
        pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % COLUMNS)
        rows = [np.hstack(pictures[start : start + COLUMNS]) for start in range(0, len(pictures), COLUMNS)]
        with replaced_when_done(Path(runner.work_dir) / "best.png") as temporary:
            mmcv.imwrite(np.vstack(rows), str(temporary))
        for backend in runner.visualizer._vis_backends.values():
            if not isinstance(backend, LocalVisBackend):
                backend.add_image("best", mmcv.bgr2rgb(np.vstack(rows)), step=runner.iter)


def _best(runner: Runner) -> dict[str, Any]:
    return {name: path for name, path in runner.message_hub.runtime_info.items() if name.startswith("best_ckpt")}
