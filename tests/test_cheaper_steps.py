"""Settings that make NetAug cheaper by changing it: fewer augmented passes, and on fewer images."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from networks import batch, build_pair, detector_config, loss_of, plain_at, scatter_gradients

from mmnetaug.engine.augmented_pass import first_images

RATE = 0.01


def train(elastic: torch.nn.Module, data: dict, steps: int, type_: str = "NetAugOptimWrapper", **settings) -> None:
    optimizer = torch.optim.SGD(elastic.parameters(), lr=RATE)
    optim_wrapper = OPTIM_WRAPPERS.build(dict(type=f"mmnetaug.{type_}", optimizer=optimizer, **settings))
    for _ in range(steps):
        with optim_wrapper.optim_context(elastic):
            losses = elastic(**copy.deepcopy(data), mode="loss")
        optim_wrapper.update_params(elastic.parse_losses(losses)[0])


def test_an_augmented_pass_every_other_iteration():
    """The iteration between is plain: it is the plain network's own step."""
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    data, other = batch(dtype=torch.float64), copy.deepcopy(elastic)
    train(elastic, data, 1)
    network = plain_at(elastic, plain, elastic.elastic.base())
    loss_of(network, data).backward()
    gradients = scatter_gradients(elastic, network, elastic.elastic.base())
    train(other, data, 2, interval=2)
    for (name, one), two in zip(elastic.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two, one - RATE * gradients[name], rtol=1e-9, atol=1e-10)


def test_iterations_of_one_step_are_alike():
    """Accumulated over two iterations, in every other step: under DDP the last iteration synchronises for both."""
    elastic, _ = build_pair(detector_config("resnet18"))
    passes = []
    elastic.register_forward_pre_hook(lambda *args: passes.append(elastic.elastic.groups[0].width))
    elastic.elastic.sample = lambda *args: elastic.elastic.largest()
    base, largest = elastic.elastic.base()[0], elastic.elastic.largest()[0]
    train(elastic, batch(), 6, interval=2, accumulative_counts=2)
    assert passes == [base, largest, base, largest, base, base, base, largest, base, largest]


def test_an_augmented_pass_on_a_part_of_the_batch():
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    data = batch(4, dtype=torch.float64)
    half = {key: value[:2] for key, value in data.items()}
    expected = {name: parameter.detach().clone() for name, parameter in elastic.named_parameters()}
    for widths, images in ((elastic.elastic.base(), data), (elastic.elastic.sample(0, 0), half)):
        network = plain_at(elastic, plain, widths)
        loss_of(network, images).backward()
        for name, gradient in scatter_gradients(elastic, network, widths).items():
            expected[name] -= RATE * gradient
    train(elastic, data, 1, share=0.5)
    for name, parameter in elastic.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-10)


def test_a_part_of_the_batch_is_cut_from_images_and_annotations_alone():
    """Whatever else is as long as the batch stays whole: here the anchors of a model of its own."""

    class Anchored(torch.nn.Module):
        def forward(self, inputs, data_samples=None, anchors=(), mode="tensor"):
            return inputs, data_samples, anchors

    images, samples, anchors = torch.zeros(4, 3, 8, 8), list(range(4)), [1, 2, 4, 8]
    for args, kwargs in (
        ((), dict(inputs=images, data_samples=samples, anchors=anchors)),
        ((images, samples, anchors), {}),
        ((list(images), None, anchors), dict(mode="loss")),
    ):
        cut = first_images(Anchored(), args, kwargs, 0.5)
        cut_images, cut_samples, cut_anchors = Anchored()(*cut[0], **cut[1])
        assert len(cut_images) == 2 and cut_anchors == anchors
        assert cut_samples in (None, [0, 1])
    with pytest.raises(TypeError, match="share=1"):
        first_images(Anchored(), (dict(sup=images),), {}, 0.5)


def test_a_repeated_factor_is_sampled_more_often():
    elastic, _ = build_pair(detector_config("resnet18"), width=[1, 1, 1, 2], expand=[1])
    group = elastic.elastic.groups[0]
    sampled = [elastic.elastic.sample(0, iteration)[0] for iteration in range(400)]
    assert sampled.count(group.base_width) / 400 == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize("wrapper", ["NetAugOptimWrapper", "NetAugAmpOptimWrapper"])
@pytest.mark.parametrize("settings", [{"interval": 0}, {"share": 0}, {"share": 1.5}])
def test_nonsense_is_refused(wrapper, settings):
    elastic, _ = build_pair(detector_config("resnet18"))
    with pytest.raises(ValueError, match=next(iter(settings))):
        train(elastic, batch(), 0, wrapper, **settings)
