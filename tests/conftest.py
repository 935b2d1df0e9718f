"""Settings of all tests: one thread, so that results do not depend on the machine, and nothing kept between tests."""

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer

import mmnetaug  # noqa: F401  # registers everything that configs name

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_run_per_process(monkeypatch) -> None:
    """MMEngine keeps what a run logs and draws with by the run's name, whose time stamp is the same for a second."""
    for kind in (Visualizer, MMLogger, MessageHub):
        monkeypatch.setattr(kind, "_instance_dict", type(kind._instance_dict)())
