"""Memory on a microcontroller: against arithmetic by hand, and against the counts of the whole network."""

from __future__ import annotations

import pytest
import torch
from networks import IMAGE, detector_config
from test_cost import MODELS_UNDER_TEST, build
from torch import Tensor, nn

from mmnetaug.analysis.cost import count_cost
from mmnetaug.analysis.memory import (
    SRAM_PER_CHANNEL,
    SRAM_PER_OPERATOR,
    deployed,
    layer_table,
    measure_footprint,
    peak_memory,
)
from mmnetaug.analysis.operators import record
from mmnetaug.terminal import parse_bytes

SHAPE = (1, 3, IMAGE, IMAGE)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, **more) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, **more)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = conv(4, 16), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.wide(x))


class Late(nn.Module):
    """Puts out an early map as well, which must stay until the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(4, 8), conv(8, 2), conv(2, 10)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(x)
        return [first, self.third(self.second(first))]


class Halves(nn.Module):
    """Two copies of parts of a map, joined again."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 2:], x[:, :2]], 1)


@pytest.mark.parametrize(
    ("model", "peak"),
    [
        (conv(4, 8), 64 * (4 + 8)),  # norm and ReLU6 need nothing of their own
        (nn.Sequential(conv(4, 8), nn.Hardswish(inplace=True)), 64 * (8 + 8)),  # a step of its own, not in place
        (nn.Sequential(conv(4, 8), nn.LeakyReLU(0.1)), 64 * (8 + 8 + 8)),  # x, slope * x and the larger of the two
        (nn.Sequential(conv(4, 8), nn.SiLU(inplace=True)), 64 * (8 + 8 + 8)),  # x, its sigmoid and their product
        (nn.MaxPool2d(3, 2, 1), 4 * 64 + 4 * 100),  # as with convolutions: a padded copy, larger than what comes out
        (nn.MaxPool2d(2), 4 * 64 + 4 * 16),
        (Residual(), 64 * (4 + 16 + 4)),  # the input waits for the addition
        (Late(), 64 * (8 + 2 + 10)),
        (conv(4, 8, 3), 64 * (4 + 8)),  # stride 1 is padded as "SAME"
        (conv(4, 8, 3, stride=2), 4 * 64 + 4 * 100),  # stride 2 is not: a padded copy
        (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 8, 3, 2)), 64 * 4 + 16 * 8),  # "SAME": no copy
        (nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(4, 8, 3, 2)), 4 * 64 + 4 * 81),
        (nn.Sequential(nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(128, 900)), 128 + 900),
        (Halves(), 64 * (2 + 2 + 4)),  # TFLite copies what it slices
    ],
    ids=[
        "conv",
        "hardswish",
        "leaky relu",
        "silu",
        "padded pooling",
        "pooling",
        "residual",
        "outputs stay",
        "same",
        "stride 2",
        "padded as same",
        "padded",
        "flattened",
        "sliced",
    ],
)
def test_peaks_by_hand(model, peak):
    assert peak_memory(record(model, (1, 4, 8, 8))).bytes == peak


def test_an_odd_input_needs_no_padded_copy():
    assert peak_memory(record(conv(4, 8, 3, stride=2), (1, 4, 9, 9))).bytes == 4 * 81 + 8 * 25


def test_a_transposed_convolution_reads_no_padded_copy():
    upsampling = nn.ConvTranspose2d(4, 4, 4, 2, 1)
    assert peak_memory(record(upsampling, (1, 4, 13, 13))).bytes == 4 * 13**2 + 4 * 26**2


class SharedConvolution(nn.Module):
    """One convolution for two levels, with a norm each, as RTMDet's head has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x):
        return [norm(self.conv(level)) for norm, level in zip(self.norms, (x, x[..., ::2, ::2]), strict=True)]


def test_a_convolution_with_several_norms_is_stored_once_for_each():
    model = SharedConvolution()
    [layer] = layer_table(model, record(model, (1, 4, 8, 8)))
    assert (layer.runs, layer.params) == (2, 4 * 8 * 9 + 32)
    assert layer.flash == 2 * (4 * 8 * 9 + 8 * (4 + 12 + 12))
    steps = len(deployed(record(model, (1, 4, 8, 8)))[0])
    expected = SRAM_PER_CHANNEL * 2 * 8 + SRAM_PER_OPERATOR * steps
    assert measure_footprint(model, (1, 4, 8, 8)).bookkeeping == expected


def test_the_peak_names_its_layer():
    peak = peak_memory(record(Residual(), (1, 4, 8, 8)))
    assert (peak.layer, peak.kind) == ("narrow.0", "convolution")
    assert peak.alive == (("image", (1, 4, 8, 8)), ("wide.0", (1, 16, 8, 8)), ("narrow.0", (1, 4, 8, 8)))


@pytest.mark.parametrize("name", MODELS_UNDER_TEST)
def test_the_rows_add_up_to_the_network(name):
    model = build(MODELS_UNDER_TEST[name])
    cost, layers = count_cost(model, SHAPE), layer_table(model, record(model, SHAPE))
    assert sum(layer.macs for layer in layers) == cost.macs
    assert sum(layer.params for layer in layers) == cost.params


def test_norms_are_counted_with_their_convolution():
    [layer] = layer_table(model := conv(4, 8, 3), record(model, (1, 4, 8, 8)))
    assert (layer.name, layer.params, layer.macs) == ("0", 4 * 8 * 9 + 16, 64 * 4 * 8 * 9)
    assert layer.flash == 4 * 8 * 9 + 8 * (4 + 12 + 12)


def test_an_elastic_model_needs_what_its_tiny_network_does():
    config = detector_config("resnet18")
    elastic = build(dict(type="mmnetaug.NetAug", model=config, width=[1, 2], expand=[1, 2]))
    with torch.random.fork_rng():
        plain = build(config)
    assert measure_footprint(elastic, SHAPE) == measure_footprint(plain, SHAPE)


def test_budget():
    footprint = measure_footprint(Residual(), (1, 4, 8, 8))
    assert footprint.misfits() == footprint.misfits(footprint.sram, footprint.flash) == []
    sram, flash = footprint.misfits(footprint.sram - 1, footprint.flash - 1)
    assert "SRAM" in sram and "narrow.0" in sram and "flash" in flash and "wide.0" in flash


@pytest.mark.parametrize(
    ("text", "size"), [("320KB", 327680), ("1MB", 1048576), ("1.5 MiB", 1572864), ("100", 100), ("2kb", 2048)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "KB", "-1KB", "1 GB", "3 apples"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="320KB"):
        parse_bytes(text)
