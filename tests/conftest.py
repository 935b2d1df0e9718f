"""Settings of all tests: one thread, so that results do not depend on the machine, and nothing kept between tests."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import init_default_scope
from mmengine.visualization import Visualizer
from torch import Tensor, nn

import mmnetaug  # noqa: F401  # registers everything that configs name
from mmnetaug.elastic import ElasticSpace, make
from mmnetaug.elastic.graph.structure import Trace
from mmnetaug.elastic.plan import Plan
from mmnetaug.models.tensor_mode import tensor_forward

torch.set_num_threads(1)

# Property tests: a few examples, always the same; many with --hypothesis-profile=long --hypothesis-seed=N.
settings.register_profile("ci", max_examples=25, derandomize=True, deadline=None, suppress_health_check=HealthCheck)
settings.register_profile("long", max_examples=2500, deadline=None, suppress_health_check=HealthCheck)
settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest files first, so that no process works on one alone at the end."""
    longest = ["test_installed.py", "test_elastic.py"]  # few tests, or few that are marked slow
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.name not in longest, -slow[item.path]))


@pytest.fixture(scope="session", autouse=True)
def garbage_is_collected_quickly() -> None:
    """MMEngine has garbage collected for every data set that it builds: 0.2 s for what is imported, exempted here."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def configs_are_written_as_they_are() -> Iterator[None]:
    """A run writes its config about five times, and MMEngine has yapf lay it out: 0.2 s each time for a detector."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda code, **kwargs: (code, True))
        yield


@pytest.fixture(scope="session", autouse=True)
def equal_networks_are_traced_once() -> Iterator[None]:
    """Tracing a detector takes seconds, and many tests build the same one by ``NetAug``: once for each process."""
    traces: dict[tuple, Trace] = {}
    reasons: dict[tuple, list[str | None]] = {}
    trace, hold_what_differs = make.trace, make.hold_what_differs

    def trace_once(model: nn.Module, forward: Callable, image: Tensor) -> Trace:
        key = structure_of(model), image.shape, forward
        found = traces.get(key) or trace(model, forward, image)
        if forward is tensor_forward and not found.boxes:  # which are modules of this model
            traces[key] = found
        return dataclasses.replace(found, channels=copy.deepcopy(found.channels))  # the rest is only read

    def hold_once(model: nn.Module, forward: Callable, image: Tensor, space: ElasticSpace, plan: Plan) -> None:
        key = structure_of(model), image.shape, forward, str(space)
        if key not in reasons:
            hold_what_differs(model, forward, image, space, plan)
            if forward is tensor_forward and not plan.found.boxes:
                reasons[key] = [group.held_reason for group in space.groups]
        else:
            for group, reason in zip(space.groups, reasons[key], strict=True):
                group.held_reason = reason

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "trace", trace_once)
        patch.setattr(make, "hold_what_differs", hold_once)
        yield


def structure_of(model: nn.Module) -> tuple[str, str]:
    """What a trace can depend on: the classes and settings of all modules, and all shapes."""
    plain = (bool, int, float, str, tuple, list, dict, type(None))
    modules = [
        (type(module), {k: v for k, v in vars(module).items() if k[0] != "_" and isinstance(v, plain)})
        for module in model.modules()
    ]
    tensors = (*model.named_parameters(), *model.named_buffers())
    return repr(modules), repr([(name, tensor.shape, tensor.requires_grad) for name, tensor in tensors])


@pytest.fixture(autouse=True)
def one_run_per_process(monkeypatch) -> None:
    """MMEngine keeps what a run logs and draws with by the run's name, whose time stamp is the same for a second."""
    kinds = [Visualizer, MMLogger, MessageHub]
    for kind in kinds:  # each class keeps its own
        kinds += kind.__subclasses__()
        monkeypatch.setattr(kind, "_instance_dict", type(kind._instance_dict)())


@pytest.fixture
def mmdet_scope() -> None:
    """Lets names without a scope mean MMDetection's."""
    init_default_scope("mmdet")
