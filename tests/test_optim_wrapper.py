"""The NetAug step: accumulation, clipping, losses that are not finite, mixed precision, memory."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import batch, build_pair, detector_config, loss_of, plain_at, scatter_gradients
from steps import RATE, assert_updated, gradients, peak_of, spoil_augmented_loss, step, wrapper
from torch import nn

from mmnetaug.elastic import Elastic
from mmnetaug.engine import optim_wrapper as optim_wrapper_module


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
    elastic, _ = build_pair(detector_config("resnet18"), **{kind: [1.0]})
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


def test_images_that_are_changed_in_place_are_an_error():
    elastic, _ = build_pair(detector_config("mobilenet_v2"))
    elastic.backbone.register_forward_pre_hook(lambda module, args: args[0].mul_(2))
    with pytest.raises(RuntimeError, match="changes its images in place"):
        step(elastic, batch(), wrapper(elastic))


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


def test_elastic_modules_are_stock_modules():
    """isinstance, class names and copies work as users of MMDetection expect."""
    elastic, _ = build_pair(detector_config("resnet18"))
    convs = [module for module in elastic.modules() if isinstance(module, Elastic) and isinstance(module, nn.Conv2d)]
    assert convs and all(type(conv).__name__ == "Conv2d" for conv in convs)
    twin = copy.deepcopy(elastic)
    with twin.elastic.at(twin.elastic.largest()):
        assert [g.width for g in elastic.elastic.groups] == elastic.elastic.base()
