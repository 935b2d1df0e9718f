"""Invariants 1 to 5 and 10 over detectors with concatenating necks, against independent plain networks."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, OPTIM_WRAPPERS, DefaultScope
from networks import (
    BACKBONES,
    EXPAND,
    IMAGE,
    WIDTH,
    Slices,
    batch,
    build_pair,
    detector_config,
    loss_of,
    plain_at,
    scatter_gradients,
)
from steps import step, wrapper
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmnetaug.elastic import (
    Elastic,
    base_state_dict,
    fill_new_channels,
    make_elastic,
    tiny_gradients_in_place,
    tiny_storage,
)

every_backbone = pytest.mark.parametrize("backbone", list(BACKBONES))


def build(config: dict) -> nn.Module:
    """Builds in mmdet's scope, whatever an earlier test has left as the default."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(config)


@every_backbone
def test_most_of_the_backbone_is_augmented(backbone):
    elastic, _ = build_pair(detector_config(backbone))
    groups = elastic.elastic.groups
    assert {group.role for group in groups} >= {"width", "expand"}
    assert [group.held_reason for group in groups] == [None] * len(groups)
    assert all(group.name.startswith("backbone.") for group in groups)


@every_backbone
@pytest.mark.parametrize("training", [False, True])
def test_base_mode_is_the_plain_network_bit_for_bit(backbone, training):
    elastic, plain = build_pair(detector_config(backbone))
    elastic.train(training), plain.train(training)
    elastic.elastic.driven = True
    data = batch()
    with torch.no_grad():
        ours, reference = elastic(data["inputs"], mode="tensor"), plain(data["inputs"], mode="tensor")
    for one, other in zip(ours[0], reference[0], strict=True):
        assert torch.equal(one, other)
    for key, value in base_state_dict(elastic).items():
        assert torch.equal(value, plain.state_dict()[key]), key


@pytest.mark.parametrize("images", [1, 5])
def test_a_linear_layer_in_base_mode_is_the_plain_one_bit_for_bit(images):
    plain = nn.Sequential(nn.Conv2d(3, 48, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    elastic = copy.deepcopy(plain)
    make_elastic(elastic, lambda network, x: [network(x)], (3, 8, 8), [1, 2], [1, 2])
    x = torch.rand(images, 3, 8, 8)
    ours, reference = elastic(x), plain(x)
    assert torch.equal(ours, reference)
    for out in (ours, reference):
        out.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in elastic.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert torch.equal(gradients[name][tuple(map(slice, parameter.shape))], parameter.grad), name


@every_backbone
def test_a_step_is_the_sum_of_both_gradients_of_independent_networks(backbone):
    elastic, plain = build_pair(detector_config(backbone), torch.float64)
    data, alpha, rate = batch(dtype=torch.float64), 0.7, 0.01
    for iteration in range(2):
        widths = elastic.elastic.sample(seed=3, iteration=iteration)
        tiny, augmented = plain_at(elastic, plain, elastic.elastic.base()), plain_at(elastic, plain, widths)
        loss_of(tiny, data).backward()
        (alpha * loss_of(augmented, data)).backward()
        base = scatter_gradients(elastic, tiny, elastic.elastic.base())
        extra = scatter_gradients(elastic, augmented, widths)
        expected = {n: p.detach() - rate * (base[n] + extra[n]) for n, p in elastic.named_parameters()}
        if iteration == 0:
            optim_wrapper = wrapper(elastic, alpha=alpha, seed=3)
        step(elastic, data, optim_wrapper)
        for name, parameter in elastic.named_parameters():
            scale = max(1.0, expected[name].abs().max().item())
            assert (parameter - expected[name]).abs().max().item() <= 1e-10 * scale, name


@every_backbone
def test_only_sampled_channels_get_a_gradient(backbone):
    """Where sampled channels lie is computed by ``Slices``, and the tiny network's by the plain network's shapes."""
    elastic, plain = build_pair(detector_config(backbone))
    space, data = elastic.elastic, batch()
    space.driven = True
    for widths in (space.largest(), space.sample(0, 0), space.base()):
        elastic.zero_grad()
        with space.at(widths):
            loss_of(elastic, data).backward()
        chosen = dict(zip(space.groups, widths, strict=True))
        for path, parameter in elastic.named_parameters():
            # Weights in front of a batch norm may get a gradient of zero here and there; a whole zero: "not reached".
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, path
            layer, name = elastic.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
            if name not in getattr(layer, "elastic_axes", {}):
                continue
            gradient = layer.stored(name).grad
            fixed = {run: run.width for axis in layer.elastic_axes[name] for run in axis.runs}
            unsampled = torch.ones_like(gradient, dtype=torch.bool)
            unsampled[Slices(layer, name, fixed | chosen).mesh()] = False
            assert not gradient[unsampled].any(), path
            additional = ~unsampled
            additional[tuple(slice(size) for size in plain.get_parameter(path).shape)] = False
            assert gradient[additional].any() == additional.any(), path


@pytest.mark.parametrize("hooked", [False, True], ids=["", "hooked"])
def test_gradients_added_in_place_are_those_of_autograd(hooked):
    """Bit for bit; only without hooks of a parameter's own is nothing padded to the stored size."""
    elastic, _ = build_pair(detector_config("resnet18"))
    other, data, seen = copy.deepcopy(elastic), batch(), []
    for model in (elastic, other):
        model.elastic.driven = True
        with model.elastic.at(model.elastic.largest()):
            loss_of(model, data).backward()
    loss_of(other, data).backward()
    weight = max((p for p in elastic.backbone.parameters()), key=torch.Tensor.numel)
    if hooked:
        weight.register_hook(seen.append)
    with tiny_gradients_in_place():
        loss = loss_of(elastic, data)
    with Sizes() as made:
        loss.backward()
    assert len(seen) == hooked and (weight.numel() in made.sizes) == hooked
    for (name, parameter), expected in zip(elastic.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad), name


class Sizes(TorchDispatchMode):
    """Notes the sizes of the tensors that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.sizes |= {leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        return out


@every_backbone
def test_the_tiny_network_is_a_subnetwork_of_every_augmented_one(backbone):
    """Silence the additional channels where they are made, whatever reads them: the tiny network must remain.

    Unlike the gradients this does not use the stored order of channels at all: a layer behind a concatenation that took
    its first channels from the wrong branch would read silence in place of the tiny network's features.
    """
    elastic, plain = build_pair(detector_config(backbone), torch.float64)
    for layer in elastic.modules():
        if isinstance(layer, Elastic):
            for name, axes in layer.elastic_axes.items():
                made = [axis for axis in axes if axis.dim == 0]
                if name in ("weight", "bias") and made:
                    with torch.no_grad():
                        layer.stored(name)[made[0].base :] = 0
    elastic.eval(), plain.eval()
    image = batch(dtype=torch.float64)["inputs"]
    space = elastic.elastic
    with torch.no_grad():
        expected = plain(image, mode="tensor")[0]
        for widths in (space.largest(), space.sample(0, 1), space.sample(0, 2)):
            with space.at(widths):
                for one, other in zip(elastic(image, mode="tensor")[0], expected, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@every_backbone
def test_the_augmented_pass_leaves_no_trace_but_its_gradients(backbone):
    elastic, plain = build_pair(detector_config(backbone))
    optim_wrapper, data = wrapper(elastic), batch()

    def draw(*args) -> None:
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))

    drawn: list[tuple] = []
    elastic.backbone.register_forward_hook(draw)
    begin = torch.get_rng_state(), np.random.get_state(), random.getstate()
    draw()
    states = torch.get_rng_state(), np.random.get_state()[1:3], random.getstate()
    for restore, state in zip((torch.set_rng_state, np.random.set_state, random.setstate), begin, strict=True):
        restore(state)
    log = step(elastic, data, optim_wrapper)
    assert drawn[2] == drawn[0] and not set(drawn[1]) & set(drawn[2])  # the augmented pass is the first
    losses = plain(**copy.deepcopy(data), mode="loss")
    _, expected = plain.parse_losses(losses)
    assert {key: value.item() for key, value in log.items()} == {key: value.item() for key, value in expected.items()}
    buffers = dict(plain.named_buffers())
    for key, value in base_state_dict(elastic).items():
        if key in buffers:
            assert torch.equal(value, buffers[key]), key
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1][0]).all() and np.random.get_state()[2] == states[1][1]
    assert random.getstate() == states[2]


def test_widths_are_a_function_of_seed_and_iteration():
    first, _ = build_pair(detector_config("mobilenet_v3"))
    second, _ = build_pair(detector_config("mobilenet_v3"))
    samples = [first.elastic.sample(0, iteration) for iteration in range(50)]
    torch.manual_seed(123)
    random.seed(5)
    assert [second.elastic.sample(0, iteration) for iteration in reversed(range(50))] == samples[::-1]
    assert first.elastic.sample(1, 0) != samples[0]
    for number, group in enumerate(first.elastic.groups):
        assert {sample[number] for sample in samples} <= set(group.widths)
        assert len({sample[number] for sample in samples}) > 1


def test_sampled_widths_follow_the_roles():
    """Hidden width = base hidden width x expand factor x width factor of the block's input (paper section 3.2)."""
    elastic, _ = build_pair(detector_config("mobilenet_v2"), width=[1, 2, 3], expand=[1, 4])
    groups = {group.name: number for number, group in enumerate(elastic.elastic.groups)}
    stage, hidden = groups["backbone.layer3.0.conv.2.conv"], groups["backbone.layer3.1.conv.0.conv"]
    seen = set()
    for iteration in range(60):
        widths = elastic.elastic.sample(0, iteration)
        factor = widths[stage] / elastic.elastic.groups[stage].base_width
        seen.add((factor, widths[hidden] / elastic.elastic.groups[hidden].base_width / factor))
        off = elastic.elastic.sample(0, iteration, width=False)
        assert off[stage] == elastic.elastic.groups[stage].base_width
        assert off[hidden] / elastic.elastic.groups[hidden].base_width in (1, 4)
    assert seen == {(width, expand) for width in (1, 2, 3) for expand in (1, 4)}
    with_squeeze, _ = build_pair(detector_config("mobilenet_v3"))
    for iteration in range(20):
        widths = dict(zip(with_squeeze.elastic.groups, with_squeeze.elastic.sample(0, iteration), strict=True))
        for group, width in widths.items():
            if group.role == "squeeze":
                gated = group.follows
                assert width / group.base_width == pytest.approx(widths[gated] / gated.base_width, abs=0.5 / 16 + 0.03)


def test_both_spellings_of_factors_and_bad_ones():
    elastic, _ = build_pair(detector_config("resnet18"), width=dict(r=3, s=2), expand=dict(r=2, s=1))
    stem = elastic.elastic.groups[0]
    assert (stem.widths, elastic.elastic.groups[1].factors) == ([8, 16, 24], (1.0, 2.0))
    for bad in ([2, 3], [1, 0.5], [], dict(r=3)):
        with pytest.raises(ValueError):
            build_pair(detector_config("resnet18"), width=bad)


@pytest.mark.slow
def test_role_overrides():
    def groups(backbone: str, roles: dict) -> dict:
        """Of the backbone alone, which is traced faster than a detector."""
        factors = dict(width=[1, 2], expand=[1, 2], input_size=IMAGE)
        model = dict(BACKBONES[backbone][0], out_indices=(2,))
        elastic = build(dict(type="mmnetaug.NetAug", model=model, roles=roles, **factors))
        return {group.name: group for group in elastic.elastic.groups}

    found = groups("resnet18", {"layer1.*": "base", "layer2.0.conv1": "width"})
    assert found["layer1.0.conv1"].widths == [8]
    assert found["layer1.0.conv1"].held_reason == "by the config"
    assert found["layer2.0.conv1"].role == "width"
    with pytest.raises(ValueError, match="matches none"):
        groups("resnet18", {"layer9*": "base"})
    with pytest.raises(ValueError, match="none of"):
        groups("resnet18", {"layer1.*": "wide"})
    found = groups("mobilenet_v3", {"*.se.conv1*": "base"})
    squeezes = [group for name, group in found.items() if ".se.conv1" in name]
    assert squeezes and all(group.held_reason == "by the config" for group in squeezes)


def test_images_have_as_many_channels_as_the_data_preprocessor_has_means():
    config = detector_config("resnet18")
    config["data_preprocessor"] = dict(type="mmdet.DetDataPreprocessor", mean=[0], std=[255])
    config["backbone"]["in_channels"] = 1
    model = build(dict(type="mmnetaug.NetAug", model=config, width=[1, 2], expand=[1, 2]))
    assert any(len(group.widths) > 1 for group in model.elastic.groups)


def test_a_backbone_alone_keeps_its_outputs():
    config = detector_config("mobilenet_v3")
    whole = copy.deepcopy(config)
    whole["backbone"] = dict(type="mmnetaug.NetAug", model=config["backbone"], width=[1, 2], expand=[1, 2])
    torch.manual_seed(7)
    plain = build(config)
    plain.init_weights()
    torch.manual_seed(7)
    model = build(whole)
    model.init_weights()
    for key, value in base_state_dict(model).items():
        assert torch.equal(value, plain.state_dict()[key]), key
    held = {group.name: group.held_reason for group in model.backbone.elastic.groups if group.held_reason}
    assert held == dict.fromkeys(
        [f"stages.{stage}.0.project_conv.conv" for stage in (2, 4, 5)], "an output of the network"
    )
    log = step(model.train(), batch(), wrapper(model))
    assert torch.isfinite(log["loss"])


@pytest.mark.parametrize("backbone", ["mobilenet_v3", "cspdarknet"])
def test_tiny_and_large_checkpoints_load(backbone):
    elastic, plain = build_pair(detector_config(backbone))
    other, _ = build_pair(detector_config(backbone))
    tiny = {
        key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in plain.state_dict().items()
    }
    assert not any(other.load_state_dict(tiny, strict=True))
    for key, value in base_state_dict(other).items():
        assert torch.equal(value, tiny[key]), key
    for layer_name, layer in other.named_modules():
        for name in getattr(layer, "elastic_axes", {}):
            stored = layer.stored(name)
            drawn = torch.isin(stored, tiny[f"{layer_name}.{name}"]) | (stored == 0)
            assert drawn.all(), "additional channels are drawn from the tiny network that is loaded"
    other.load_state_dict(elastic.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), elastic.parameters(), strict=True))
    with tiny_storage(other):
        other.load_state_dict(elastic.state_dict(), strict=True)
    for key, value in base_state_dict(other).items():
        assert torch.equal(value, base_state_dict(elastic)[key]), key
    wrong = {**tiny, "backbone.conv9.weight": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="conv9"):
        other.load_state_dict(wrong, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mobilenet_v3", "resnet18", "cspdarknet"])  # three ways to initialise
def test_the_tiny_network_starts_as_the_plain_one(backbone):
    """Same seed, same initial weights: baseline and NetAug runs start from one point, whatever initialises them."""
    config = detector_config(backbone)
    torch.manual_seed(7)
    plain = build(copy.deepcopy(config))
    plain.init_weights()
    torch.manual_seed(7)
    elastic = build(dict(type="mmnetaug.NetAug", model=copy.deepcopy(config), width=WIDTH, expand=EXPAND))
    elastic.init_weights()
    for key, value in base_state_dict(elastic).items():
        assert torch.equal(value, plain.state_dict()[key]), key
    for layer in elastic.modules():
        for name in getattr(layer, "elastic_axes", {}):
            stored = layer.stored(name).detach()
            assert (torch.isin(stored, stored[layer.base_block(name)]) | (stored == 0)).all()


@every_backbone
def test_every_augmented_network_starts_as_the_function_of_the_tiny_one(backbone):
    """Same outputs and, on the tiny network's weights, same gradients; once initialised and once loaded."""
    elastic, plain = build_pair(detector_config(backbone), torch.float64)
    data, space = batch(dtype=torch.float64), elastic.elastic
    space.driven = True
    for start in (lambda: fill_new_channels(elastic), lambda: elastic.load_state_dict(plain.state_dict())):
        start()
        found = []
        for widths in (space.base(), space.largest(), space.sample(0, 0)):
            elastic.zero_grad()
            with space.at(widths):
                loss = loss_of(elastic, data)
                loss.backward()
            gradients = {name: parameter.grad for name, parameter in elastic.named_parameters()}
            found.append({"loss": loss, **base_state_dict(elastic, elastic.state_dict() | gradients)})
        for other in found[1:]:
            for name in ("loss", *gradients):
                torch.testing.assert_close(other[name], found[0][name], rtol=1e-8, atol=1e-8)


def test_predictions_agree_with_the_stock_detector():
    elastic, plain = build_pair(detector_config("mobilenet_v3"))
    elastic.eval(), plain.eval()
    data = batch()
    with torch.no_grad():
        ours, stock = (model(**copy.deepcopy(data), mode="predict") for model in (elastic, plain))
    for one, other in zip(ours, stock, strict=True):
        assert len(one.pred_instances) > 0
        assert torch.equal(one.pred_instances.bboxes, other.pred_instances.bboxes)
        assert torch.equal(one.pred_instances.scores, other.pred_instances.scores)


def test_a_plain_optimizer_wrapper_is_refused():
    elastic, plain = build_pair(detector_config("resnet18"))
    stock = OPTIM_WRAPPERS.build(dict(type="OptimWrapper", optimizer=torch.optim.SGD(elastic.parameters(), 0.1)))
    with pytest.raises(RuntimeError, match="NetAugOptimWrapper"):
        step(elastic, batch(), stock)
    with pytest.raises(RuntimeError, match="elastic"):
        step(plain, batch(), wrapper(plain))
    elastic.eval()
    with torch.no_grad():
        elastic(torch.zeros(1, 3, IMAGE, IMAGE), mode="tensor")


def test_sync_bn_configs_build_without_a_process_group():
    """MMEngine's Runner reverts SyncBN on one process, which it cannot do to elastic norms."""
    config = detector_config("resnet18")
    config["backbone"]["norm_cfg"] = dict(type="SyncBN")
    elastic, _ = build_pair(config)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in elastic.modules())
    assert torch.isfinite(step(elastic, batch(), wrapper(elastic))["loss"])


@pytest.mark.slow
def test_augmented_networks_cost_what_the_authors_factors_say():
    """MobileNetV2 w0.35 at 160: 5.6 times the base MACs on average, 14.6 at most, 1.74 with expand factors alone.

    That is the cost of the features. The last 1x1 convolution and the classifier, which no expand factor touches, bring
    the whole classifier down to 5.1, 13.3 and 1.62.
    """
    config = dict(
        type="mmpretrain.ImageClassifier",
        backbone=dict(type="mmnetaug.MobileNetV2", widen_factor=0.35),
        neck=dict(type="mmpretrain.GlobalAveragePooling"),
        head=dict(type="mmpretrain.LinearClsHead", num_classes=1000, in_channels=1280),
    )
    factors = dict(width=[1, 1.8, 2.6], expand=[1, 1.6, 2.2, 2.8])
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(dict(type="mmnetaug.NetAug", model=config, input_size=160, **factors)).eval()
    places = {}  # convolution -> positions of its output
    for name, layer in model.backbone.named_modules():
        if isinstance(layer, nn.Conv2d) and not name.startswith("conv2"):
            layer.register_forward_hook(lambda layer, _, out: places.update({layer: out[0, 0].numel()}))
    with torch.no_grad():
        model(torch.zeros(1, 3, 160, 160), mode="tensor")
    space = model.elastic

    def macs(widths: list[int]) -> int:
        with space.at(widths):
            return sum(layer.weight.numel() * positions for layer, positions in places.items())

    def average(**switches: bool) -> float:
        return np.mean([macs(space.sample(0, i, **switches)) for i in range(400)]) / macs(space.base())

    assert macs(space.base()) == 26_010_800  # 30.87 M (section 2) but for the last convolution and the classifier
    assert average() == pytest.approx(5.6, rel=0.03)
    assert macs(space.largest()) / macs(space.base()) == pytest.approx(14.6, rel=0.01)
    assert average(width=False) == pytest.approx(1.74, rel=0.01)
