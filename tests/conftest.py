"""Settings of all tests: one thread, so that results do not depend on the machine, and nothing kept between tests."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import init_default_scope
from mmengine.visualization import Visualizer

import mmnetaug  # noqa: F401  # registers everything that configs name

torch.set_num_threads(1)

# Property tests: a few examples, always the same; many with --hypothesis-profile=long --hypothesis-seed=N.
settings.register_profile("ci", max_examples=25, derandomize=True, deadline=None, suppress_health_check=HealthCheck)
settings.register_profile("long", max_examples=2500, deadline=None, suppress_health_check=HealthCheck)
settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs files with many slow tests first, so that no process works on one alone at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def configs_are_written_as_they_are() -> Iterator[None]:
    """A run writes its config about five times, and MMEngine has yapf lay it out: 0.2 s each time for a detector."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda code, **kwargs: (code, True))
        yield


@pytest.fixture(autouse=True)
def one_run_per_process(monkeypatch) -> None:
    """MMEngine keeps what a run logs and draws with by the run's name, whose time stamp is the same for a second."""
    for kind in (Visualizer, MMLogger, MessageHub):
        monkeypatch.setattr(kind, "_instance_dict", type(kind._instance_dict)())


@pytest.fixture(scope="module")
def quick_garbage_collection() -> Iterator[None]:
    """Exempts what is imported from garbage collection, which MMEngine runs for every data set that it builds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def mmdet_scope() -> None:
    """Lets names without a scope mean MMDetection's."""
    init_default_scope("mmdet")
