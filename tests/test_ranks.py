"""Two ranks under gloo equal one process that sees both halves of the batch."""

from __future__ import annotations

import copy
import os
import socket

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from networks import batch, build_pair, detector_config
from steps import RATE, gradients, spoil_augmented_loss, step, wrapper
from torch import nn

pytestmark = pytest.mark.slow

RANKS = {
    "plain sum": (dict(), ()),
    "clipped": (dict(clip_grad=dict(max_norm=0.5)), ()),
    "one rank not finite": (dict(), (1,)),
    "one rank not finite, clipped": (dict(clip_grad=dict(max_norm=0.5)), (1,)),
    "distilled": (dict(distill=dict(weight=0.3), normalize=True), ()),
    "unused parameters": (dict(), ()),
}
"""Settings of the optimizer wrapper, and the ranks whose augmented loss is not finite."""


def _rank(rank: int, port: int, path: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo")
    for case, (settings, spoilt) in RANKS.items():
        elastic, _ = build_pair(detector_config("resnet18"), torch.float64)
        if rank in spoilt:
            spoil_augmented_loss(elastic)
        if unused := case == "unused parameters":
            elastic.unused = nn.Linear(1, 1)
        distributed = MMDistributedDataParallel(elastic, broadcast_buffers=False, find_unused_parameters=unused)
        optim_wrapper = wrapper(distributed, **copy.deepcopy(settings))
        step_distributed(distributed, batch(seed=rank, dtype=torch.float64), optim_wrapper)
        torch.save(elastic.state_dict(), f"{path}/{case} {rank}.pth")
    torch.distributed.destroy_process_group()


def step_distributed(model: nn.Module, data: dict, optim_wrapper) -> None:
    """``MMDistributedDataParallel.train_step`` behind the data preprocessor."""
    with optim_wrapper.optim_context(model):
        losses = model(**copy.deepcopy(data), mode="loss")
    optim_wrapper.update_params(model.module.parse_losses(losses)[0])


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """What a step of two ranks, each with a batch of its own, makes of the weights, for each of ``RANKS``."""
    path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # forked processes need not import and trace again, which takes longer than their steps
    build_pair(detector_config("resnet18"), torch.float64)
    method = "spawn" if torch.cuda.is_available() else "fork"
    torch.multiprocessing.start_processes(_rank, (port, str(path)), nprocs=2, start_method=method)
    found = {}
    for case in RANKS:
        found[case], second = (torch.load(path / f"{case} {rank}.pth", weights_only=True) for rank in range(2))
        for name in second:
            assert "running" in name or torch.equal(found[case][name], second[name]), (case, name)
    return found


@pytest.mark.parametrize("case", [case for case in RANKS if case != "distilled"])
def test_two_ranks_equal_one_process_that_sees_both_halves(case, two_ranks):
    """Where one rank's augmented loss is not finite, the step is plain on both."""
    settings, spoilt = RANKS[case]
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    expected = {name: p.detach().clone() for name, p in elastic.named_parameters()}
    for widths in (elastic.elastic.base(), elastic.elastic.sample(0, 0))[: 1 if spoilt else 2]:
        halves = [gradients(elastic, plain, batch(seed=rank, dtype=torch.float64), widths) for rank in range(2)]
        mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in expected}
        norm = torch.stack([gradient.norm() for gradient in mean.values()]).norm().item()
        factor = settings["clip_grad"]["max_norm"] / (norm + 1e-6) if settings else 1.0
        for name in expected:
            expected[name] -= RATE * factor * mean[name]
    for name, value in expected.items():
        torch.testing.assert_close(two_ranks[case][name], value, rtol=1e-9, atol=1e-9)


def test_two_ranks_with_distillation_equal_the_mean_of_both(two_ranks):
    alone = []
    for rank in range(2):
        elastic, _ = build_pair(detector_config("resnet18"), torch.float64)
        step(elastic, batch(seed=rank, dtype=torch.float64), wrapper(elastic, **copy.deepcopy(RANKS["distilled"][0])))
        alone.append(dict(elastic.named_parameters()))
    for name in alone[0]:  # of SGD without momentum, the step by a mean of gradients is the mean of the steps
        mean = (alone[0][name] + alone[1][name]).detach() / 2
        torch.testing.assert_close(two_ranks["distilled"][name], mean, rtol=1e-9, atol=1e-9)
