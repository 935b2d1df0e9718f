"""The hook that speeds up training on a CPU: it changes results by rounding only, and nothing is tuned without it."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.nn.utils import parametrizations

from mmnetaug import CPUTuningHook, NetAugOptimWrapper
from mmnetaug.elastic import base_state_dict, make_elastic
from mmnetaug.engine import cpu_tuning
from mmnetaug.models.tensor_mode import tensor_forward


class Overwriting(BaseModel):
    """Overwrites what in-place activations return, and reads what they have overwritten."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm2d
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU6(inplace=True))
        self.dropped = nn.Sequential(nn.Conv2d(8, 8, 1), norm(8), nn.ReLU6(inplace=True), nn.Dropout(0.5, inplace=True))
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), norm(8))
        self.silu, self.hardswish = nn.SiLU(inplace=True), nn.Hardswish(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, inputs, data_samples=None, mode="loss"):
        x = self.backbone(inputs)
        x += 1
        x = self.deep(self.dropped(x))
        for activation in (self.silu, self.hardswish):
            x = x + activation(x)
        scores = self.head(x.mean((2, 3)))
        return dict(loss=scores.square().mean()) if mode == "loss" else scores


def tune(model: nn.Module) -> None:
    CPUTuningHook().before_run(SimpleNamespace(model=model))


@pytest.fixture
def malloc_untouched(monkeypatch):
    """Which calls would have changed malloc."""
    calls = []
    monkeypatch.setattr(cpu_tuning, "keep_freed_memory", lambda: calls.append(1))
    return calls


def elastic_copy(plain: nn.Module) -> nn.Module:
    elastic = copy.deepcopy(plain)
    space = make_elastic(elastic, tensor_forward, (3, 16, 16), [1, 2], [1, 2])
    assert space.largest() != space.base()
    return elastic


def netaug_step(elastic: nn.Module, images: torch.Tensor, **kwargs) -> torch.Tensor:
    wrapper = NetAugOptimWrapper(torch.optim.SGD(elastic.parameters(), lr=0.1), **kwargs)
    with wrapper.optim_context(elastic):
        loss = elastic(images)["loss"]
    wrapper.update_params(loss)
    return loss


@pytest.mark.parametrize("tuned", [False, True])
def test_networks_that_overwrite_activations_train_as_they_do_plainly(tuned, malloc_untouched):
    torch.manual_seed(0)
    plain = Overwriting()
    if tuned:
        plain.dropped[3].p = 0.0  # masks are drawn in the order of the memory
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    elastic = elastic_copy(plain).double()
    plain.double()
    if tuned:
        tune(elastic)
    torch.manual_seed(1)  # of dropout
    loss = netaug_step(elastic, images, alpha=1e-30)
    torch.manual_seed(1)
    expected = plain(images)["loss"]
    expected.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    state = base_state_dict(elastic)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-12)


def test_without_the_hook_nothing_is_tuned(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda *args: pytest.fail("malloc is changed"))

    def settings() -> list:
        return [(type(module), set(vars(module)), getattr(module, "inplace", None)) for module in elastic.modules()]

    images, elastic = torch.randn(4, 3, 16, 16), elastic_copy(Overwriting())
    before, formats = settings(), []
    hook = elastic.backbone.register_forward_pre_hook(lambda module, args: formats.append(args[0].stride()))
    netaug_step(elastic, images)
    hook.remove()
    assert settings() == before
    assert formats == [images.stride()] * 2


def test_backbones_read_channels_last_images(malloc_untouched):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = (nn.ModuleDict(dict(backbone=Reader())) for _ in range(2))

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, *args, **kwargs):
            return args, kwargs

    model, images = Branches(), torch.rand(2, 3, 4, 4)
    tune(model)
    tune(model)  # as a runner that trains and then tests does
    for part in (model.student, model.teacher):
        (first, mask), kwargs = part["backbone"](images, torch.zeros(2, 4, 4), images=images, scale=2)
        assert torch.equal(first, images) and first.is_contiguous(memory_format=torch.channels_last)
        assert kwargs["images"].is_contiguous(memory_format=torch.channels_last)
        assert mask.is_contiguous() and kwargs["scale"] == 2
    assert malloc_untouched == [1, 1]


def test_a_model_on_an_accelerator_is_left_alone(malloc_untouched):
    model = Overwriting().to("meta")
    before = [set(vars(module)) for module in model.modules()]
    tune(model)
    assert before == [set(vars(module)) for module in model.modules()]
    assert not model.backbone._forward_pre_hooks and not malloc_untouched


def test_a_model_without_a_backbone():
    with pytest.raises(ValueError, match=r"Linear has none: leave the hook out"):
        tune(nn.Linear(2, 2))


def depthwise(kernel: int, stride: int | tuple[int, int] = 1, dilation: int = 1, **kwargs) -> nn.Conv2d:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, kernel, stride, kernel // 2, dilation, groups=16, **{"bias": False, **kwargs})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
    return layer


def tuned_copy(layer: nn.Module) -> nn.Module:
    model = nn.ModuleDict(dict(backbone=nn.Identity(), layer=copy.deepcopy(layer)))
    tune(model)
    return copy.deepcopy(model["layer"])  # as an EMA copy would be made


def gradients(layer: nn.Module, dtype: torch.dtype = torch.float32, shape: tuple = (4, 16, 15, 17)) -> list:
    """Output, gradients and a second-order gradient under bfloat16 autocast, or in float64 without it."""
    layer = layer.to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator).bfloat16().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32):
        out = layer(x)
    direction = torch.linspace(-1, 1, out.numel()).view_as(out).bfloat16().to(out.dtype).requires_grad_()
    parameters = list(layer.parameters())
    first = torch.autograd.grad((out * direction).sum(), [x, *parameters], create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), [direction, parameters[-1]], allow_unused=True)
    return [out, *first, *(gradient for gradient in second if gradient is not None)]


class Doubled(nn.Conv2d):
    """A convolution with an arithmetic of its own."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


LAYERS = {
    "3x3 stride 2": lambda: depthwise(3, 2),
    "3x3 stride 2x1": lambda: depthwise(3, (2, 1)),
    "5x5": lambda: depthwise(5),
    "5x5 stride 2": lambda: depthwise(5, 2),
    "7x7 dilated": lambda: depthwise(7, 2, 2),
    "with bias": lambda: depthwise(5, bias=True),
    "circular padding": lambda: depthwise(5, padding_mode="circular"),
    "parametrized": lambda: parametrizations.weight_norm(depthwise(5)),
    "overridden": lambda: Doubled(16, 16, 5, groups=16, bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(4, 16, 15, 17), (16, 15, 17)], ids=["batch", "one image"])
def test_depthwise_convolutions_in_bfloat16(name, shape, malloc_untouched):
    """Against float64 on the same rounded images and weights: as close as the stock kernels, or closer."""
    layer = LAYERS[name]()
    exact = gradients(copy.deepcopy(layer), torch.float64, shape)
    stock = gradients(copy.deepcopy(layer), shape=shape)
    ours = gradients(tuned_copy(layer), shape=shape)
    assert [one.dtype for one in ours] == [other.dtype for other in stock]
    for reference, theirs, mine in zip(exact, stock, ours, strict=True):
        error, allowed = (mine - reference).abs().max(), (theirs - reference).abs().max()
        assert error <= 1.5 * allowed + 1e-6 and error <= 0.02 * reference.abs().max()
    for one, other in zip(gradients(tuned_copy(layer), torch.float64, shape), exact, strict=True):
        assert torch.equal(one, other)  # without autocast nothing changes


def test_depthwise_convolutions_are_computed_in_float32(malloc_untouched):
    layer = depthwise(5)
    x = torch.randn(2, 16, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        stock, ours = layer(x), tuned_copy(layer)(x)
    assert torch.equal(ours, layer(x).bfloat16()) and not torch.equal(ours, stock)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 32, 5), nn.Conv2d(16, 16, 5, groups=4)]
)
def test_other_convolutions_stay_in_bfloat16(layer, malloc_untouched):
    x = torch.randn(2, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tuned_copy(layer)(x), layer(x))
