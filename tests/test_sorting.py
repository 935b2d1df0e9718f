"""Sorting channels: the largest network computes the same, and it waits for pending gradients."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from networks import batch, build_pair, detector_config, loss_of
from runs import run, runner_config
from steps import step, wrapper
from torch import nn

from mmnetaug.elastic import base_state_dict, make_elastic, sort_hidden_channels
from mmnetaug.engine import hooks as hooks_module


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [("resnet18", "sgd"), ("mobilenet_v3", "sgd"), ("mobilenet_v3", "adam"), ("cspdarknet", "sgd")],
)
def test_sorting_changes_nothing_but_the_order(backbone, kind):
    elastic, _ = build_pair(detector_config(backbone), torch.float64)
    make = {
        "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True),
        "adam": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-4),
    }[kind]
    space, data = elastic.elastic, batch(dtype=torch.float64)
    space.sample = lambda *args, **kwargs: space.largest()  # the largest network is what sorting leaves alone
    optim_wrapper = wrapper(elastic, optimizer=make(elastic))
    step(elastic, data, optim_wrapper)
    average = copy.deepcopy(elastic)
    twin = copy.deepcopy(elastic)
    twin_wrapper = wrapper(twin, optimizer=make(twin))
    twin_wrapper.optimizer.load_state_dict(copy.deepcopy(optim_wrapper.optimizer.state_dict()))

    def largest_output(model: nn.Module) -> torch.Tensor:
        model.eval()
        with torch.no_grad(), model.elastic.at(model.elastic.largest()):
            result = torch.cat([level.flatten() for level in model(data["inputs"], mode="tensor")[0]])
        model.train()
        return result

    before, tiny_before = largest_output(elastic), base_state_dict(elastic)
    sort_hidden_channels(elastic, optim_wrapper.optimizer, [average])
    torch.testing.assert_close(largest_output(elastic), before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(largest_output(average), before, rtol=1e-9, atol=1e-9)
    tiny_after = base_state_dict(elastic)
    assert any(not torch.equal(value, tiny_after[key]) for key, value in tiny_before.items()), "nothing was sorted"
    # Momentum moved along: the largest network goes on training exactly as the unsorted one.
    for model, its in ((elastic, optim_wrapper), (twin, twin_wrapper)):
        its.optimizer.zero_grad()
        with model.elastic.at(model.elastic.largest()):
            loss_of(model, data).backward()
        its.optimizer.step()
    torch.testing.assert_close(largest_output(elastic), largest_output(twin), rtol=1e-8, atol=1e-8)


def test_sorting_puts_the_most_read_channels_first():
    elastic, _ = build_pair(detector_config("mobilenet_v3"))
    sort_hidden_channels(elastic)
    blocks = [m for m in elastic.backbone.modules() if hasattr(m, "project_conv") and m.expand_conv is not None]
    assert any(block.se is not None for block in blocks)
    for block in blocks:
        norms = block.project_conv.conv.stored("weight").detach().abs().sum((0, 2, 3))
        assert (norms.diff() <= 1e-6).all()
        if block.se is not None:
            norms = block.se.conv2.conv.stored("weight").detach().abs().sum((0, 2, 3))
            assert (norms.diff() <= 1e-6).all()


def test_sorting_knows_what_a_transposed_convolution_reads():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(), nn.ConvTranspose2d(12, 6, 2, 2), nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    roles = {"2": "expand", "4": "width"}
    space = make_elastic(net, lambda model, x: model(x), (3, 8, 8), width=[1, 2], expand=[1, 2], roles=roles)
    nn.init.normal_(net[4].stored("weight"))
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), space.at(space.largest()):
        before = net(image)
        sort_hidden_channels(net)
        torch.testing.assert_close(net(image), before)
    norms = net[4].stored("weight").detach().abs().sum((1, 2, 3))
    assert (norms.diff() <= 1e-6).all()


def test_sorting_brings_no_untrained_statistics_into_the_tiny_network():
    elastic, _ = build_pair(detector_config("mobilenet_v3"))
    optim_wrapper = wrapper(elastic, optimizer=torch.optim.SGD(elastic.parameters(), lr=0.0))
    elastic.elastic.sample = lambda *args: elastic.elastic.largest()
    norms = [module for module in elastic.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.stored("running_var").fill_(1e6)
        norm.momentum = 0.5
    for _ in range(16):
        step(elastic, batch(), optim_wrapper)
    sort_hidden_channels(elastic)
    assert all(
        value.max() < 1e5 for key, value in base_state_dict(elastic).items() if "backbone" in key and "_var" in key
    )


def test_sorting_waits_for_accumulated_gradients(tmp_path, monkeypatch):
    """Epochs of four iterations, steps of three: at the start of epochs 2 and 3 gradients are pending."""
    sorted_at = []
    monkeypatch.setattr(hooks_module, "sort_hidden_channels", lambda *args: sorted_at.append(wrappers[0].inner_count))
    wrappers = []
    monkeypatch.setattr(
        hooks_module.ChannelSortHook, "before_run", lambda hook, runner: wrappers.append(runner.optim_wrapper), False
    )
    optim_wrapper = {**runner_config(tmp_path)["optim_wrapper"], "accumulative_counts": 3}
    run(tmp_path, optim_wrapper=optim_wrapper, custom_hooks=[dict(type="mmnetaug.ChannelSortHook")])
    assert sorted_at == [0, 6, 9, 12]


def test_sorting_by_iterations_goes_on_after_a_resume(monkeypatch):
    """Every five iterations, in steps of three; each iteration is the first of a resumed run, with a new hook."""
    elastic, _ = build_pair(detector_config("resnet18"))
    sorted_at = []
    monkeypatch.setattr(hooks_module, "sort_hidden_channels", lambda *args: sorted_at.append(iteration))
    for iteration in range(18):
        step = SimpleNamespace(width=True, inner_count=iteration, _accumulative_counts=3, optimizer=None)
        runner = SimpleNamespace(iter=iteration, epoch=0, hooks=[], model=elastic, optim_wrapper=step)
        hooks_module.ChannelSortHook(interval=5, by_epoch=False).before_train_iter(runner, iteration)
    assert sorted_at == [0, 6, 12, 15]
