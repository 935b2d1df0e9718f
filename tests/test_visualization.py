"""``mmnetaug.TensorboardIfInstalled``: event files where tensorboard is installed, nothing where it is not."""

import importlib.util

import pytest
from mmengine.visualization import Visualizer

import mmnetaug  # noqa: F401  (registers the backend)


@pytest.mark.parametrize("installed", [True, False])
def test_event_files_are_written_where_tensorboard_is_installed(installed, tmp_path, monkeypatch):
    if installed:
        pytest.importorskip("tensorboard")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", {"tensorboard": None}.__getitem__)
    backends = [dict(type="LocalVisBackend"), dict(type="mmnetaug.TensorboardIfInstalled")]
    visualizer = Visualizer(vis_backends=backends, save_dir=str(tmp_path))
    visualizer.add_scalar("loss", 0.5, step=1)
    visualizer.close()
    assert list(tmp_path.glob("**/scalars.json"))
    assert bool(list(tmp_path.glob("**/events.out.tfevents*"))) == installed
