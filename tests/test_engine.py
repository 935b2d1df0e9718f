"""The NetAug step under real training conditions: accumulation, clipping, AMP, EMA, sorting, schedules, two ranks."""

from __future__ import annotations

import copy
import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.hooks import EMAHook, Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import DATASETS, HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from networks import BACKBONES, batch, build_pair, detector_config, loss_of, plain_at, scatter_gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.weak import WeakIdKeyDictionary

from mmnetaug import NetAugScheduleHook
from mmnetaug.elastic import Elastic, base_state_dict, make_elastic, sort_hidden_channels
from mmnetaug.engine import hooks as hooks_module
from mmnetaug.engine import optim_wrapper as optim_wrapper_module
from mmnetaug.errors import WriteError

RATE = 0.01


def wrapper(model: nn.Module, type_: str = "mmnetaug.NetAugOptimWrapper", optimizer=None, **kwargs):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=RATE)
    return OPTIM_WRAPPERS.build(dict(type=type_, optimizer=optimizer, **kwargs))


def step(model: nn.Module, data: dict, optim_wrapper) -> dict:
    """``BaseModel.train_step`` behind the data preprocessor."""
    with optim_wrapper.optim_context(model):
        losses = model(**copy.deepcopy(data), mode="loss")
    loss, log = model.parse_losses(losses)
    optim_wrapper.update_params(loss)
    return log


def gradients(elastic: nn.Module, plain: nn.Module, data: dict, widths: list[int]) -> dict[str, torch.Tensor]:
    """Gradients of an independent plain network of these widths, at their places in the stored parameters."""
    network = plain_at(elastic, plain, widths)
    loss_of(network, data).backward()
    return scatter_gradients(elastic, network, widths)


def assert_updated(elastic: nn.Module, expected: dict[str, torch.Tensor], tolerance: float = 1e-10) -> None:
    for name, parameter in elastic.named_parameters():
        error = (parameter.detach() - expected[name]).abs().max().item()
        assert error <= tolerance * max(1.0, expected[name].abs().max().item()), (name, error)


# Gradient accumulation ------------------------------------------------------------------------------------------------


def test_accumulation_sums_both_passes_of_all_batches():
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    data = [batch(seed=seed, dtype=torch.float64) for seed in range(2)]  # halves are exact in mmdet's float32 parts
    expected = {name: parameter.detach().clone() for name, parameter in elastic.named_parameters()}
    for iteration, one in enumerate(data):
        for widths in (elastic.elastic.base(), elastic.elastic.sample(0, iteration)):
            for name, gradient in gradients(elastic, plain, one, widths).items():
                expected[name] -= RATE * gradient / 2
    optim_wrapper = wrapper(elastic, accumulative_counts=2)
    before = [parameter.detach().clone() for parameter in elastic.parameters()]
    for number, one in enumerate(data):
        step(elastic, one, optim_wrapper)
        if number < 1:
            assert all(torch.equal(a, b) for a, b in zip(before, elastic.parameters(), strict=True))
    assert optim_wrapper.inner_count == 2
    assert_updated(elastic, expected)


@pytest.mark.parametrize("kind", ["width", "expand"])
def test_with_nothing_to_sample_a_step_is_plain(kind):
    """Width factors alone, and the schedule has switched them off."""
    elastic, _ = build_pair(detector_config("mobilenet_v3"), **{kind: [1.0]})
    optim_wrapper = wrapper(elastic)
    setattr(optim_wrapper, {"width": "expand", "expand": "width"}[kind], False)
    step(elastic, batch(), optim_wrapper)
    assert "train/loss_aug" not in optim_wrapper.message_hub.log_scalars
    assert optim_wrapper.inner_count == 1


def test_the_augmented_pass_sees_what_the_base_pass_saw():
    """Some heads of mmdet change the ground truth that they are given."""
    elastic, _ = build_pair(detector_config("resnet18"))
    careless = copy.deepcopy(elastic)
    head = careless.bbox_head
    loss = head.loss

    def change(features, samples):
        found = loss(features, samples)
        for sample in samples:
            sample.gt_instances.bboxes += 100
            sample.gt_instances.pop("labels")
        return found

    head.loss = change
    for model in (elastic, careless):
        step(model, batch(), wrapper(model))
    assert_updated(careless, dict(elastic.named_parameters()), 0)


def test_gradients_that_share_memory_are_not_clipped_one_by_one():
    elastic, _ = build_pair(detector_config("resnet18"))
    elastic.gradient_as_bucket_view = True
    with (
        pytest.raises(RuntimeError, match="gradient_as_bucket_view"),
        wrapper(elastic, clip_grad=dict(max_norm=1)).optim_context(elastic),
    ):
        pass


# Clipping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_pass_is_clipped_by_itself(accumulate):
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    data = [batch(seed=seed, dtype=torch.float64) for seed in range(accumulate)]
    limit = 0.5
    sums = [{name: torch.zeros_like(p) for name, p in elastic.named_parameters()} for _ in range(2)]
    for iteration, one in enumerate(data):
        for total, widths in zip(sums, (elastic.elastic.base(), elastic.elastic.sample(0, iteration)), strict=True):
            for name, gradient in gradients(elastic, plain, one, widths).items():
                total[name] += gradient / accumulate
    norms = [torch.stack([gradient.norm() for gradient in total.values()]).norm().item() for total in sums]
    assert min(norms) > limit, "nothing would be clipped"
    factors = [limit / (norm + 1e-6) for norm in norms]
    expected = {
        name: p.detach() - RATE * sum(factor * total[name] for factor, total in zip(factors, sums, strict=True))
        for name, p in elastic.named_parameters()
    }
    optim_wrapper = wrapper(elastic, clip_grad=dict(max_norm=limit), accumulative_counts=accumulate)
    for one in data:
        step(elastic, one, optim_wrapper)
    assert_updated(elastic, expected)
    logged = [optim_wrapper.message_hub.get_scalar(f"train/grad_norm{name}").current() for name in ("", "_aug")]
    assert logged == pytest.approx(norms, rel=1e-6)


def test_clipping_together_on_request():
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    data = batch(dtype=torch.float64)
    total = gradients(elastic, plain, data, elastic.elastic.base())
    for name, gradient in gradients(elastic, plain, data, elastic.elastic.sample(0, 0)).items():
        total[name] = total[name] + gradient
    factor = 0.5 / (torch.stack([gradient.norm() for gradient in total.values()]).norm().item() + 1e-6)
    expected = {name: p.detach() - RATE * factor * total[name] for name, p in elastic.named_parameters()}
    step(elastic, data, wrapper(elastic, clip_grad=dict(max_norm=0.5), clip_together=True))
    assert_updated(elastic, expected)


# Augmented passes that are not finite ---------------------------------------------------------------------------------


def spoil_augmented_loss(elastic: nn.Module, times: int = 1000) -> None:
    """Makes the loss infinite at all widths but the base ones, for the first ``times`` augmented passes."""
    parse, space, left = elastic.parse_losses, elastic.elastic, [times]

    def parse_losses(losses: dict) -> tuple:
        loss, log = parse(losses)
        if [group.width for group in space.groups] != space.base() and left[0]:
            left[0] -= 1
            loss = loss * torch.inf
        return loss, log

    elastic.parse_losses = parse_losses


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(clip_grad=dict(max_norm=0.5)),
        dict(clip_grad=dict(max_norm=0.5), clip_together=True),
        dict(normalize=True),
        dict(surgery="all"),
        dict(distill=dict(weight=0.5)),
    ],
    ids=lambda settings: ",".join(settings) or "default",
)
def test_an_augmented_loss_that_is_not_finite_leaves_the_plain_step(settings):
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    spoil_augmented_loss(elastic)
    data = batch(dtype=torch.float64)
    expected = {name: parameter.detach().clone() for name, parameter in elastic.named_parameters()}
    base = gradients(elastic, plain, data, elastic.elastic.base())
    norm = torch.stack([gradient.norm() for gradient in base.values()]).norm().item()
    factor = min(1.0, 0.5 / (norm + 1e-6)) if "clip_grad" in settings else 1.0
    for name in expected:
        expected[name] -= RATE * factor * base[name]
    optim_wrapper = wrapper(elastic, **copy.deepcopy(settings))
    step(elastic, data, optim_wrapper)
    assert_updated(elastic, expected)
    assert optim_wrapper.message_hub.get_scalar("train/netaug/skipped").current() == 1
    assert "train/loss_aug" not in optim_wrapper.message_hub.log_scalars
    assert optim_wrapper.inner_count == 1


@pytest.mark.parametrize(
    "settings", [dict(clip_grad=dict(max_norm=5.0)), dict(surgery="tensor")], ids=["clip", "surgery"]
)
def test_an_augmented_gradient_that_is_not_finite_leaves_the_plain_step(settings):
    """The loss is finite and its gradient is not, which shows where the two gradients are kept apart."""
    elastic, _ = build_pair(detector_config("resnet18"), torch.float64)
    other = copy.deepcopy(elastic)
    passes = []
    elastic.backbone.conv1.stored("weight").register_hook(
        lambda grad: passes.append(0) or (grad * torch.nan if len(passes) == 1 else None)
    )
    spoil_augmented_loss(other)
    for model in (elastic, other):
        step(model, batch(dtype=torch.float64), wrapper(model, **copy.deepcopy(settings)))
    assert_updated(elastic, dict(other.named_parameters()), 0)


def test_many_augmented_losses_in_a_row_that_are_not_finite_stop_training(monkeypatch):
    monkeypatch.setattr(optim_wrapper_module, "MAX_SKIPPED_IN_A_ROW", 3)
    elastic, _ = build_pair(detector_config("resnet18"))
    spoil_augmented_loss(elastic, times=2)
    optim_wrapper = wrapper(elastic)
    for _ in range(3):
        step(elastic, batch(), optim_wrapper)
    assert optim_wrapper.message_hub.get_scalar("train/netaug/skipped").current() == 2
    spoil_augmented_loss(elastic)
    for _ in range(2):
        step(elastic, batch(), optim_wrapper)
    with pytest.raises(RuntimeError, match="not finite in 3 steps in a row: lower the learning rate"):
        step(elastic, batch(), optim_wrapper)


@pytest.mark.parametrize("alpha", [-1, float("nan"), float("inf")])
def test_alpha_is_a_finite_weight(alpha):
    elastic, _ = build_pair(detector_config("resnet18"))
    with pytest.raises(ValueError, match="alpha"):
        wrapper(elastic, alpha=alpha)


def test_an_alpha_of_zero_trains_plainly():
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    spoil_augmented_loss(elastic)
    data = batch(dtype=torch.float64)
    found = gradients(elastic, plain, data, elastic.elastic.base())
    expected = {name: p.detach() - RATE * found[name] for name, p in elastic.named_parameters()}
    optim_wrapper = wrapper(elastic, alpha=0)
    step(elastic, data, optim_wrapper)
    assert_updated(elastic, expected)
    assert not {"train/loss_aug", "train/netaug/skipped"} & optim_wrapper.message_hub.log_scalars.keys()


# Channels that were not sampled ---------------------------------------------------------------------------------------


def test_channels_that_were_not_sampled_move_as_by_a_gradient_of_zero():
    """By momentum and weight decay, as in the authors' code: SGD written out by hand, three steps."""
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    momentum, decay = 0.9, 1e-2
    optimizer = torch.optim.SGD(elastic.parameters(), lr=RATE, momentum=momentum, weight_decay=decay)
    optim_wrapper = wrapper(elastic, optimizer=optimizer)
    weights = {name: p.detach().clone() for name, p in elastic.named_parameters()}
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    still = 0
    for iteration in range(3):
        data = batch(seed=iteration, dtype=torch.float64)
        base, augmented = (
            gradients(elastic, plain, data, widths)
            for widths in (elastic.elastic.base(), elastic.elastic.sample(0, iteration))
        )
        for name, weight in weights.items():
            gradient = base[name] + augmented[name]
            still += int((gradient == 0).sum())
            velocity[name] = momentum * velocity[name] + gradient + decay * weight
            weights[name] = weight - RATE * velocity[name]
        step(elastic, data, optim_wrapper)
    assert still > 1000, "every channel was sampled"
    assert_updated(elastic, weights)


# Mixed precision ------------------------------------------------------------------------------------------------------


AMP = [("bfloat16", "cpu")] + [(dtype, "cuda") for dtype in ("bfloat16", "float16") if torch.cuda.is_available()]


@pytest.mark.parametrize(("dtype", "device"), AMP)
def test_mixed_precision_sums_both_passes_under_autocast(dtype, device):
    elastic, plain = (model.to(device) for model in build_pair(detector_config("mobilenet_v2")))
    data = batch(4)
    data["inputs"], data["data_samples"] = data["inputs"].to(device), [s.to(device) for s in data["data_samples"]]
    expected = {name: p.detach().clone() for name, p in elastic.named_parameters()}
    for widths in (elastic.elastic.base(), elastic.elastic.sample(0, 0)):
        network = plain_at(elastic, plain, widths)
        with torch.autocast(device, getattr(torch, dtype)):
            losses = network(**copy.deepcopy(data), mode="loss")
        loss = network.parse_losses(losses)[0]
        scale = 1024.0 if dtype == "float16" else 1.0  # gradients below float16's range would be lost
        (scale * loss).backward()
        for name, gradient in scatter_gradients(elastic, network, widths).items():
            expected[name] -= RATE * gradient / scale
    options = {"loss_scale": 1024.0} if dtype == "float16" else {}
    step(elastic, data, wrapper(elastic, "mmnetaug.NetAugAmpOptimWrapper", dtype=dtype, **options))
    assert_updated(elastic, expected, 1e-5)


@pytest.mark.parametrize("clip", [dict(max_norm=1.0), dict(type="value", clip_value=1.0)], ids=["norm", "value"])
@pytest.mark.parametrize("overflows", [1, 2], ids=["augmented", "base"])
def test_a_step_whose_gradient_overflows_is_skipped(clip, overflows):
    """As in MMEngine, whatever clipping makes of an infinity; by the scaler that float16 has on a GPU."""
    elastic, _ = build_pair(detector_config("resnet18"))
    optim_wrapper = wrapper(elastic, "mmnetaug.NetAugAmpOptimWrapper", clip_grad=dict(clip))  # which MMEngine empties
    optim_wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    passes = []
    elastic.backbone.conv1.stored("weight").register_hook(
        lambda grad: passes.append(0) or (grad * float("inf") if len(passes) == overflows else None)
    )
    before = [parameter.detach().clone() for parameter in elastic.parameters()]
    step(elastic, batch(), optim_wrapper)
    assert all(torch.equal(a, b) for a, b in zip(before, elastic.parameters(), strict=True))
    step(elastic, batch(), optim_wrapper)
    assert not all(torch.equal(a, b) for a, b in zip(before, elastic.parameters(), strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has float16")
def test_a_cpu_has_no_float16():
    elastic, _ = build_pair(detector_config("resnet18"))
    with pytest.raises(ValueError, match="bfloat16"):
        wrapper(elastic, "mmnetaug.NetAugAmpOptimWrapper", dtype="float16")


# Activation checkpointing, SyncBN, compile ----------------------------------------------------------------------------


def test_activation_checkpointing_recomputes_at_the_right_widths():
    config = detector_config("resnet18")
    reference, _ = build_pair(config, torch.float64)
    config["backbone"]["with_cp"] = True
    checkpointed, _ = build_pair(config, torch.float64)
    checkpointed.load_state_dict(reference.state_dict())
    data = batch(dtype=torch.float64)
    for model in (reference, checkpointed):
        step(model, data, wrapper(model))
    assert_updated(checkpointed, dict(reference.named_parameters()), 1e-12)


def test_sync_bn_conversion_is_refused_with_the_way_out():
    elastic, _ = build_pair(detector_config("resnet18"))
    with pytest.raises(RuntimeError, match="norm_cfg=dict\\(type='SyncBN'\\)"):
        nn.SyncBatchNorm.convert_sync_batchnorm(elastic)


def test_compilation_is_refused():
    elastic, _ = build_pair(detector_config("resnet18"))
    elastic.train_step = torch.compile(elastic.train_step, backend="eager")  # as MMEngine's Runner does
    with pytest.raises(RuntimeError, match="leave compile out of the config"):
        elastic.train_step(batch(), wrapper(elastic))
    del elastic.train_step
    compiled = torch.compile(elastic, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="recompile"):
        compiled(batch()["inputs"], mode="tensor")


# Sorting --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", list(BACKBONES))
@pytest.mark.parametrize("kind", ["sgd", "adam"])
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


# A whole run by MMEngine's Runner -------------------------------------------------------------------------------------


@DATASETS.register_module(force=True)
class BoxedNoise(BaseDataset):
    """Eight noise images with boxes, without random transforms: the same batches in every run."""

    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(8)]

    def __getitem__(self, index: int) -> dict:
        one = batch(1, seed=index)
        return dict(inputs=(one["inputs"][0] * 255).to(torch.uint8), data_samples=one["data_samples"][0])


def runner_config(work_dir: Path, **changes) -> dict:
    """Four epochs of four iterations, everything on: momentum, schedule, sorting, EMA, clipping."""
    config = dict(
        model=dict(type="mmnetaug.NetAug", model=detector_config("mobilenet_v3"), width=[1, 1.5], expand=[1, 1.5]),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=dict(type="mmengine.BoxedNoise"),
            sampler=dict(type="DefaultSampler", shuffle=True),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=4),
        optim_wrapper=dict(
            type="mmnetaug.NetAugOptimWrapper",
            optimizer=dict(type="SGD", lr=1e-3, momentum=0.9, nesterov=True),
            clip_grad=dict(max_norm=5.0),
        ),
        param_scheduler=dict(type="CosineAnnealingLR", T_max=4, convert_to_iter_based=True),
        default_hooks=dict(
            checkpoint=dict(type="mmnetaug.TinyCheckpointHook", interval=1, max_keep_ckpts=2),
            logger=dict(type="LoggerHook", interval=1),
        ),
        custom_hooks=[
            dict(type="mmnetaug.NetAugScheduleHook", width_until=0.5),
            dict(type="mmnetaug.ChannelSortHook"),
            dict(type="EMAHook", momentum=0.1),
        ],
        randomness=dict(seed=0),
        default_scope="mmdet",
        experiment_name=work_dir.name,
        log_level="WARNING",
    )
    return {**config, **changes}


def run(work_dir: Path, **changes) -> Runner:
    runner = Runner(**ConfigDict(runner_config(work_dir, **changes)).to_dict())
    runner.cfg.model = None  # nothing reads it, and it is long in every log
    runner.train()
    return runner


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> tuple[Runner, Path]:
    work_dir = tmp_path_factory.mktemp("whole")
    return run(work_dir), work_dir


@pytest.mark.parametrize("settings", [{}, dict(distill=dict(), surgery="all", normalize=True)], ids=["", "distilled"])
def test_a_resumed_run_is_bit_identical(settings, whole_run, tmp_path, monkeypatch):
    """Schedule, sorting, EMA, momentum and sampled widths included."""
    optim_wrapper = {**runner_config(tmp_path)["optim_wrapper"], **settings}
    reference = run(tmp_path / "whole", optim_wrapper=optim_wrapper) if settings else whole_run[0]
    hooks = [*runner_config(tmp_path)["custom_hooks"], dict(type="mmengine.StopHook")]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", optim_wrapper=optim_wrapper, custom_hooks=hooks)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # one's own checkpoint; tools/train.py does the same
    resumed = run(tmp_path / "cut", optim_wrapper=optim_wrapper, resume=True)
    assert resumed.iter == reference.iter == 16
    for (name, one), (_, other) in zip(
        resumed.model.state_dict().items(), reference.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    averages = [next(h for h in r.hooks if isinstance(h, EMAHook)).ema_model for r in (resumed, reference)]
    for one, other in zip(averages[0].state_dict().values(), averages[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("kind", "clip_together"), [("mmnetaug.NetAugOptimWrapper", False), ("mmnetaug.NetAugAmpOptimWrapper", True)]
)
def test_a_run_resumed_between_accumulated_gradients_is_bit_identical(tmp_path, monkeypatch, kind, clip_together):
    """Epochs of four iterations, steps of three: the first epoch's checkpoint holds one iteration's gradients."""
    before = runner_config(tmp_path)
    settings = dict(
        optim_wrapper=before["optim_wrapper"] | dict(type=kind, accumulative_counts=3, clip_together=clip_together),
        train_cfg=dict(by_epoch=True, max_epochs=2),
    )
    reference = run(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", custom_hooks=[*before["custom_hooks"], dict(type="mmengine.StopHook")], **settings)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    resumed = run(tmp_path / "cut", resume=True, **settings)
    assert resumed.iter == reference.iter == 8
    ends = [
        {**r.model.state_dict(), **next(h for h in r.hooks if isinstance(h, EMAHook)).ema_model.state_dict()}
        for r in (resumed, reference)
    ]
    assert [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])] == []
    full = torch.load(tmp_path / "whole/epoch_2.pth", weights_only=False)
    assert "accumulated_gradients" not in full  # the last iteration makes a step whatever it has


@HOOKS.register_module(force=True)
class StopHook(Hook):
    """Ends a run in the middle of its second epoch, while widths are sampled and channels sorted."""

    priority = "LOWEST"

    def after_train_iter(self, runner: Runner, batch_idx: int, **kwargs) -> None:
        if runner.iter == 5:
            raise KeyboardInterrupt


def test_checkpoints_have_tiny_twins_of_the_ema_network(whole_run):
    runner, work_dir = whole_run
    files = sorted(path.name for path in work_dir.glob("*.pth*"))
    assert files == ["epoch_3.pth", "epoch_3_tiny.pth", "epoch_4.pth", "epoch_4_tiny.pth"]
    tiny = torch.load(work_dir / "epoch_4_tiny.pth", weights_only=True)
    _, plain = build_pair(detector_config("mobilenet_v3"))
    plain.load_state_dict(tiny["state_dict"], strict=True)
    average = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
    for key, value in base_state_dict(average).items():
        if value.is_floating_point() and "running" not in key:
            assert torch.equal(value, tiny["state_dict"][key]), key
    assert tiny["meta"]["epoch"] == 4


def test_width_augmentation_ends_where_the_schedule_says(whole_run):
    runner, _ = whole_run
    assert (runner.optim_wrapper.width, runner.optim_wrapper.expand) == (False, True)


def test_statistics_can_be_reestimated():
    """By MMPretrain's PreciseBNHook, which replaces the buffers: those of the tiny network alone."""
    from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats  # after mmnetaug, in spawned processes too

    elastic, plain = build_pair(detector_config("mobilenet_v3"))
    elastic.elastic.driven = True
    plain.load_state_dict(base_state_dict(elastic), strict=True)
    shapes = {name: buffer.shape for name, buffer in elastic.state_dict().items()}
    loader = DataLoader(BoxedNoise(), batch_size=2, collate_fn=pseudo_collate)
    before = base_state_dict(elastic)
    for model in (elastic, plain):
        update_bn_stats(model.train(), loader, num_samples=8, logger="silent")
    after = plain.state_dict()
    for name, value in base_state_dict(elastic).items():
        assert torch.equal(value, after[name]), name
    assert any(not torch.equal(before[name], after[name]) for name in before if "running_var" in name)
    assert {name: buffer.shape for name, buffer in elastic.state_dict().items()} == shapes


def test_with_everything_off_training_is_plain(tmp_path):
    runner = run(
        tmp_path,
        custom_hooks=[dict(type="mmnetaug.NetAugScheduleHook", width_until=2, expand_until=3, by_epoch=False)],
        train_cfg=dict(by_epoch=False, max_iters=4),
        param_scheduler=None,
        default_hooks=dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook", by_epoch=False, interval=100)),
    )
    assert len(runner.message_hub.get_scalar("train/loss_aug").data[0]) == 3


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
    elastic, _ = build_pair(detector_config("mobilenet_v2"))
    sorted_at = []
    monkeypatch.setattr(hooks_module, "sort_hidden_channels", lambda *args: sorted_at.append(iteration))
    for iteration in range(18):
        step = SimpleNamespace(width=True, inner_count=iteration, _accumulative_counts=3, optimizer=None)
        runner = SimpleNamespace(iter=iteration, epoch=0, hooks=[], model=elastic, optim_wrapper=step)
        hooks_module.ChannelSortHook(interval=5, by_epoch=False).before_train_iter(runner, iteration)
    assert sorted_at == [0, 6, 12, 15]


def test_images_that_are_changed_in_place_are_an_error():
    elastic, _ = build_pair(detector_config("mobilenet_v2"))
    elastic.backbone.register_forward_pre_hook(lambda module, args: args[0].mul_(2))
    with pytest.raises(RuntimeError, match="changes its images in place"):
        step(elastic, batch(), wrapper(elastic))


def test_hooks_that_count_epochs_refuse_training_without(tmp_path):
    for hook in (dict(type="mmnetaug.ChannelSortHook"), dict(type="mmnetaug.NetAugScheduleHook", width_until=2)):
        with pytest.raises(ValueError, match="by_epoch=False"):
            run(
                tmp_path,
                custom_hooks=[hook],
                train_cfg=dict(by_epoch=False, max_iters=4),
                param_scheduler=None,
                default_hooks=dict(checkpoint=None),
            )


def test_a_share_of_a_training_by_iterations(tmp_path):
    runner = run(
        tmp_path,
        custom_hooks=[dict(type="mmnetaug.NetAugScheduleHook", width_until=0.25, expand_until=0.5)],
        train_cfg=dict(by_epoch=False, max_iters=4),
        param_scheduler=None,
        default_hooks=dict(checkpoint=None),
    )
    assert len(runner.message_hub.get_scalar("train/loss_aug").data[0]) == 2


def test_a_missing_twin_is_made_from_its_own_checkpoint(tmp_path, monkeypatch):
    """A run that was killed between a best checkpoint and its twin, and whose next epoch is no better."""
    runner = run(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1), custom_hooks=[])
    hook = next(h for h in runner.hooks if isinstance(h, hooks_module.TinyCheckpointHook))
    before = torch.load(tmp_path / "epoch_1_tiny.pth", weights_only=True)
    (tmp_path / "epoch_1_tiny.pth").unlink()
    with torch.no_grad():
        for parameter in runner.model.parameters():
            parameter.add_(1)
    hook._finish(runner, [str(tmp_path / "epoch_1.pth")])
    after = torch.load(tmp_path / "epoch_1_tiny.pth", weights_only=True)
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())


def test_one_rank_alone_writes_twins(whole_run, monkeypatch):
    runner, work_dir = whole_run
    hook = next(h for h in runner.hooks if isinstance(h, hooks_module.TinyCheckpointHook))
    twin = work_dir / "epoch_4_tiny.pth"
    content = twin.read_bytes()
    twin.unlink()
    with monkeypatch.context() as other_rank:
        other_rank.setattr("mmengine.dist.utils.is_main_process", lambda: False)
        hook._finish(runner, [str(work_dir / "epoch_4.pth")])
    assert not twin.exists()
    twin.write_bytes(content)


def test_the_schedule_switches_between_steps(tmp_path, monkeypatch):
    """Steps of three iterations, width and expand augmentation off after four: the second step is augmented in full."""
    sorts = []
    monkeypatch.setattr(hooks_module, "sort_hidden_channels", lambda *args: sorts.append(len(sorts)))
    optim_wrapper = {**runner_config(tmp_path)["optim_wrapper"], "accumulative_counts": 3}
    runner = run(
        tmp_path,
        optim_wrapper=optim_wrapper,
        custom_hooks=[
            dict(type="mmnetaug.NetAugScheduleHook", width_until=1, expand_until=1),
            dict(type="mmnetaug.ChannelSortHook"),
        ],
        default_hooks=dict(checkpoint=None),
    )
    assert sorts == [0]  # the next is due when the augmentation has ended
    assert len(runner.message_hub.get_scalar("train/loss_aug").data[0]) == 6


@pytest.mark.parametrize("hook", ["NetAugScheduleHook", "ChannelSortHook"])
def test_a_schedule_without_netaug_is_an_error(tmp_path, hook):
    with pytest.raises(TypeError, match="NetAugOptimWrapper"):
        run(
            tmp_path,
            model=detector_config("mobilenet_v3"),
            optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=1e-3)),
            custom_hooks=[dict(type=f"mmnetaug.{hook}")],
        )


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    """Nothing half-written under a final name, and the old checkpoint goes only when the new one is complete."""
    run(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1), custom_hooks=[])
    before = {path.name for path in tmp_path.glob("*.pth")}
    assert before == {"epoch_1.pth", "epoch_1_tiny.pth"}

    def disk_full(*args):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, "replace", disk_full)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(WriteError, match=r"epoch_2\.pth cannot be written: No space left"):
        run(
            tmp_path,
            resume=True,
            train_cfg=dict(by_epoch=True, max_epochs=2),
            custom_hooks=[],
            default_hooks=dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook", max_keep_ckpts=1)),
        )
    assert {path.name for path in tmp_path.glob("*.pth")} == before
    assert (tmp_path / "last_checkpoint").read_text().endswith("epoch_1.pth")


# Two ranks ------------------------------------------------------------------------------------------------------------


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
    torch.multiprocessing.spawn(_rank, (port, str(path)), nprocs=2)
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


# Memory ---------------------------------------------------------------------------------------------------------------


def peak_of(run) -> int:
    """Bytes of tensors made and alive at the peak of a call."""
    live, most = WeakIdKeyDictionary(), 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal most
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    live[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
            most = max(most, sum(live.values()))
            return out

    with Watch():
        run()
    return most


def test_the_two_passes_are_never_alive_together():
    """Invariant 12: what both passes keep for backward, at its peak, is what the larger one keeps."""
    elastic, _ = build_pair(detector_config("mobilenet_v2"))
    space, data = elastic.elastic, batch(16)  # activations outweigh the weights and their gradients
    optim_wrapper = wrapper(elastic)
    step(elastic, data, optim_wrapper)

    def one_pass(widths: list[int]) -> None:
        with space.at(widths):
            loss_of(elastic, data).backward()

    largest = space.largest()
    elastic.zero_grad()
    alone = max(peak_of(lambda: one_pass(space.base())), peak_of(lambda: one_pass(largest)))
    elastic.zero_grad()
    space.sample = lambda *args: largest
    both = peak_of(lambda: step(elastic, data, optim_wrapper))
    assert both <= 1.15 * alone, (both, alone)


def test_the_schedule_rejects_nonsense():
    with pytest.raises(ValueError, match="width_until"):
        NetAugScheduleHook(width_until=-1)


def test_elastic_modules_are_stock_modules():
    """isinstance, class names and copies work as users of MMDetection expect."""
    elastic, _ = build_pair(detector_config("resnet18"))
    convs = [module for module in elastic.modules() if isinstance(module, Elastic) and isinstance(module, nn.Conv2d)]
    assert convs and all(type(conv).__name__ == "Conv2d" for conv in convs)
    twin = copy.deepcopy(elastic)
    with twin.elastic.at(twin.elastic.largest()):
        assert [g.width for g in elastic.elastic.groups] == elastic.elastic.base()
