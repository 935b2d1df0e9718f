"""``BestPictureHook``: what it shows, and when."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmnetaug.engine.best_picture import BestPictureHook


class Backend:
    """Stands for TensorBoard."""

    def __init__(self) -> None:
        self.images: list[tuple[str, np.ndarray, int]] = []

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        self.images.append((name, image, step))


@pytest.fixture
def runner(tmp_path: Path) -> SimpleNamespace:
    dataset = SimpleNamespace(metainfo=dict(classes=("cat", "dog")))
    return SimpleNamespace(
        work_dir=str(tmp_path),
        iter=40,
        message_hub=SimpleNamespace(runtime_info={"epoch": 1}),
        val_dataloader=SimpleNamespace(dataset=dataset),
        visualizer=SimpleNamespace(_vis_backends={"tensorboard": Backend()}),
    )


def prediction(folder: Path, number: int, score: float) -> DetDataSample:
    """One box on a blue image."""
    path = folder / f"{number}.png"
    cv2.imwrite(str(path), np.full((160, 320, 3), (255, 0, 0), np.uint8))
    found = InstanceData(
        bboxes=torch.tensor([[80.0, 40.0, 240.0, 120.0]]), scores=torch.tensor([score]), labels=torch.tensor([1])
    )
    return DetDataSample(metainfo=dict(img_path=str(path)), pred_instances=found)


def validate(hook: BestPictureHook, runner: SimpleNamespace, samples: list[DetDataSample], best: str | None) -> None:
    hook.before_val_epoch(runner)
    for start in range(0, len(samples), 3):
        hook.after_val_iter(runner, start, outputs=samples[start : start + 3])
    if best:
        runner.message_hub.runtime_info["best_ckpt"] = best  # as CheckpointHook does
    hook.after_val_epoch(runner, {})


def test_the_first_images_are_drawn_when_a_better_checkpoint_is_kept(runner, tmp_path):
    hook, path = BestPictureHook(images=5), tmp_path / "best.png"
    samples = [prediction(tmp_path, number, 0.9 if number % 2 else 0.2) for number in range(7)]
    validate(hook, runner, samples, None)
    assert not path.exists()
    validate(hook, runner, samples, "best_epoch_1.pth")
    picture = cv2.imread(str(path))
    [(name, image, step)] = runner.visualizer._vis_backends["tensorboard"].images
    assert (name, step) == ("best", 40)
    np.testing.assert_array_equal(image[..., ::-1], picture)
    # two rows of four, of which three are empty; an image of 320x160 fills the upper half of its square
    tiles = picture.reshape(2, 320, 4, 320, 3).swapaxes(1, 2).reshape(8, 320, 320, 3)
    for number, tile in enumerate(tiles):
        assert (tile[160:] == 255).all()
        changed = (tile[:160] != (255, 0, 0)).any(-1)
        if number >= 5:
            assert (tile == 255).all()
        elif number % 2:
            assert changed[60:100, 78:83].any() and not changed[:30].any()  # the left edge of the box
        else:
            assert not changed.any()
    path.unlink()
    validate(hook, runner, samples, None)
    assert not path.exists()
