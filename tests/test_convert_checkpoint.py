"""``tools/convert_checkpoint.py``: foreign checkpoints compute in our networks what they compute in their own."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample
from test_tools import load_tool, run
from torch import Tensor, nn

REPO = Path(__file__).parents[1]
NETWORKS = REPO / "configs/classification/imagenet"
convert_checkpoint = load_tool("convert_checkpoint")


# --- networks with the names of the authors' code, from its tables ---------------------------------------------------


class Layer(nn.Module):
    """Convolution, batch norm and activation."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1, act=F.relu6, norm=True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not norm)
        if norm:
            self.norm = nn.BatchNorm2d(outputs)
        self.act = act

    def forward(self, x):
        x = self.conv(x)
        return self.act(self.norm(x) if hasattr(self, "norm") else x)


class Squeeze(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.reduce_conv = nn.Conv2d(channels, squeezed, 1)
        self.expand_conv = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.expand_conv(F.relu(self.reduce_conv(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """An inverted bottleneck, whose ``se_layer`` is registered last."""

    def __init__(self, inputs, hidden, outputs, kernel, stride, shortcut, act=F.relu6, squeezed=0, expand=True):
        super().__init__()
        self.conv = nn.Module()
        if expand:
            self.conv.inverted_conv = Layer(inputs, hidden, 1, act=act)
        self.conv.depth_conv = Layer(hidden, hidden, kernel, stride, hidden, act)
        self.conv.point_conv = Layer(hidden, outputs, 1, act=nn.Identity())
        if squeezed:
            self.conv.se_layer = Squeeze(hidden, squeezed)
        self.shortcut = shortcut and stride == 1 and inputs == outputs

    def forward(self, x):
        out = x
        for name in ("inverted_conv", "depth_conv", "se_layer", "point_conv"):
            out = getattr(self.conv, name, nn.Identity())(out)
        return x + out if self.shortcut else out


def sequence(*modules):
    """The authors' sequence, which holds its parts under ``op_list``."""
    holder = nn.Module()
    holder.op_list = nn.ModuleList(modules)
    holder.forward = lambda x: [x := module(x) for module in holder.op_list][-1]
    return holder


class Classifier(nn.Module):
    def __init__(self, features, classes):
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


class AuthorsNetwork(nn.Module):
    """stem, first output and its shortcut, [stages of (inputs, hidden, outputs, kernel, stride, ...)], head."""

    def __init__(self, stem, first, stages, head, act=F.relu6, first_act=F.relu6, shortcut=False):
        super().__init__()
        self.backbone = nn.Module()
        block = Block(stem, stem, first, 3, 1, shortcut, first_act, expand=False)
        self.backbone.input_stem = sequence(Layer(3, stem, 3, 2, act=act), block)
        self.backbone.stages = nn.ModuleList(sequence(*(Block(*row) for row in stage)) for stage in stages)
        self.head = sequence(*head)

    def forward(self, x):
        x = self.backbone.input_stem(x)
        for stage in self.backbone.stages:
            x = stage(x)
        return self.head(x)


def rows(inputs, table):
    """Stages of (inputs, hidden, outputs, kernel, stride, shortcut) from (outputs, stride, kernels, hidden channels).

    The first block of a stage has no shortcut, even where its shapes allow one.
    """
    stages = []
    for outputs, stride, kernels, hidden in table:
        first, *others = zip(hidden, kernels, strict=True)
        stages.append([(inputs, first[0], outputs, first[1], stride, False)])
        stages[-1] += [(outputs, channels, outputs, kernel, 1, True) for channels, kernel in others]
        inputs = outputs
    return stages


V2_STAGES = [
    (8, 2, [3] * 2, [48] * 2),
    (16, 2, [3] * 3, [48, 96, 96]),
    (24, 2, [3] * 4, [96, 144, 144, 144]),
    (32, 1, [3] * 3, [144, 192, 192]),
    (56, 2, [3] * 3, [192, 336, 336]),
]
PROXYLESS_STAGES = [
    (16, 2, [5, 3], [24, 48]),
    (16, 2, [7, 3, 5, 5], [48] * 4),
    (32, 2, [7, 5, 5, 5], [96, 96, 96, 96]),
    (32, 1, [5] * 4, [192, 96, 96, 96]),
    (64, 2, [7] * 4, [192, 384, 192, 192]),
]
MCUNET_STAGES = [
    (16, 2, [7, 3, 7, 5], [24, 80, 80, 64]),
    (24, 2, [5] * 3, [80, 120, 120]),
    (40, 2, [3, 7, 5], [120, 240, 160]),
    (48, 1, [5, 7, 3], [200, 240, 240]),
    (96, 2, [3, 7, 3], [288, 480, 384]),
]


def chain(stages, last, hidden, kernel, features, inputs, classes):
    end = [Block(inputs, hidden, last, kernel, 1, False)]
    end += [Layer(last, features, 1)] if features else []
    head = [*end, nn.AdaptiveAvgPool2d(1), Classifier(features or last, classes)]
    return AuthorsNetwork(16, 8, rows(8, stages), head)


def v3(classes):
    relu, swish = F.relu, F.hardswish
    stages = rows(
        8,
        [
            (8, 2, [3] * 2, [24, 24]),
            (16, 2, [5] * 3, [24, 40, 40]),
            (32, 2, [3] * 4, [88, 72, 64, 64]),
            (40, 1, [3] * 2, [168, 232]),
            (56, 2, [5] * 3, [232, 336, 336]),
        ],
    )
    gates = [(relu, []), (relu, [16, 16, 16]), (swish, []), (swish, [40, 56]), (swish, [56, 88, 88])]
    stages = [
        [(*row, act, squeezed) for row, squeezed in itertools.zip_longest(stage, squeezes, fillvalue=0)]
        for stage, (act, squeezes) in zip(stages, gates, strict=True)
    ]
    head = [
        Layer(56, 336, 1, act=swish),
        nn.AdaptiveAvgPool2d(1),
        Layer(336, 1280, 1, act=swish, norm=False),
        Classifier(1280, classes),
    ]
    return AuthorsNetwork(8, 8, stages, head, act=swish, first_act=relu, shortcut=True)


AUTHORS = {
    "mobilenet_v2_tiny": lambda classes: chain(V2_STAGES, 112, 336, 3, 448, 56, classes),
    "mobilenet_v2_w035": lambda classes: chain(V2_STAGES, 112, 336, 3, 1280, 56, classes),
    "proxyless_w035": lambda classes: chain(PROXYLESS_STAGES, 112, 384, 7, 1280, 64, classes),
    "mcunet": lambda classes: chain(MCUNET_STAGES, 160, 480, 7, 0, 96, classes),
    "mobilenet_v3_w035": v3,
}


# --- tests ------------------------------------------------------------------------------------------------------------


def randomised(network: nn.Module) -> nn.Module:
    """Every tensor drawn anew: statistics and affine parameters, too, which start at 0 and 1."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                nn.init.normal_(tensor, std=0.2)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def logits(config: str, checkpoint: Path, images: Tensor, options: dict | None = None) -> Tensor:
    """What our network of a config computes with a checkpoint, which must load strictly."""
    cfg = Config.fromfile(NETWORKS / f"{config}_in1k.py")
    cfg.merge_from_dict(options or {})
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    return model(images, mode="tensor")


def convert(tmp_path: Path, state: dict, config: str, options: dict | None = None) -> int:
    torch.save(state, tmp_path / "theirs.pth")
    cfg_options = ["--cfg-options", *(f"{key}={value}" for key, value in options.items())] if options else []
    path = NETWORKS / f"{config}_in1k.py"
    return run(convert_checkpoint, path, tmp_path / "theirs.pth", "--out", tmp_path / "ours.pth", *cfg_options)


def check_same_logits(tmp_path: Path, theirs: nn.Module, config: str, options: dict | None = None) -> None:
    randomised(theirs)
    assert convert(tmp_path, theirs.state_dict(), config, options) == 0
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 0.1
        ours = logits(config, tmp_path / "ours.pth", images, options)
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", AUTHORS)
def test_networks_of_the_authors(name, tmp_path):
    check_same_logits(tmp_path, AUTHORS[name](1000), name)


@pytest.mark.parametrize("width", [0.35, 1.0, 1.4])
def test_mobilenet_v2_of_torchvision(width, tmp_path):
    from torchvision.models import mobilenet_v2

    theirs = mobilenet_v2(width_mult=width)
    options = {"model.backbone.widen_factor": width, "model.head.in_channels": theirs.last_channel}
    check_same_logits(tmp_path, theirs, "mobilenet_v2_w035", options)


@pytest.mark.parametrize("width", [0.35, 1.4])
def test_mobilenet_v2_of_timm(width, tmp_path):
    theirs = pytest.importorskip("timm").create_model(f"mobilenetv2_{round(width * 100):03d}")
    options = {"model.backbone.widen_factor": width, "model.head.in_channels": theirs.num_features}
    check_same_logits(tmp_path, theirs, "mobilenet_v2_w035", options)


@pytest.mark.parametrize("width", [0.35, 0.5, 1.0])
def test_mobilenet_v3_of_torchvision(width, tmp_path):
    """Its narrow networks have narrower features and squeeze-and-excitations than ours."""
    from torchvision.models.mobilenetv3 import MobileNetV3, _mobilenet_v3_conf

    theirs = MobileNetV3(*_mobilenet_v3_conf("mobilenet_v3_large", width_mult=width))
    check_same_logits(tmp_path, theirs, "mobilenet_v3_w035", {"model.backbone.widen_factor": width})


def test_mobilenet_v3_of_timm(tmp_path):
    theirs = pytest.importorskip("timm").create_model("mobilenetv3_large_100")
    check_same_logits(tmp_path, theirs, "mobilenet_v3_w035", {"model.backbone.widen_factor": 1.0})


@pytest.mark.parametrize(
    ("name", "width", "theirs"),
    [
        # 80 and 112 channels times 0.15 are both 16: torchvision's stage of stride 1 then starts with a shortcut
        ("mobilenet_v3_w035", 0.15, "torchvision"),
        # 32 and 16 channels times 0.1 are both 8: mmpretrain's first block then has a shortcut, the authors' has not
        ("mobilenet_v2_w035", 0.1, "authors"),
    ],
)
def test_shortcuts_that_differ_are_an_error(name, width, theirs, tmp_path, capsys):
    if theirs == "torchvision":
        from torchvision.models.mobilenetv3 import MobileNetV3, _mobilenet_v3_conf

        state = MobileNetV3(*_mobilenet_v3_conf("mobilenet_v3_large", width_mult=width)).state_dict()
    else:
        table = [(8, 2, [3] * 2, [48] * 2), (8, 2, [3] * 3, [48] * 3), (8, 2, [3] * 4, [48] * 4)]
        table += [(16, 1, [3] * 3, [48, 96, 96]), (16, 2, [3] * 3, [96] * 3)]
        head = [Block(16, 96, 32, 3, 1, False), Layer(32, 1280, 1), nn.AdaptiveAvgPool2d(1), Classifier(1280, 1000)]
        state = AuthorsNetwork(8, 8, rows(8, table), head).state_dict()
    assert convert(tmp_path, state, name, {"model.backbone.widen_factor": width}) == 1
    assert "at this width a shortcut" in capsys.readouterr().err


def test_layers_are_found_whatever_their_order_in_the_file(tmp_path):
    theirs = randomised(AUTHORS["mobilenet_v3_w035"](1000))
    assert convert(tmp_path, {"state_dict": dict(sorted(theirs.state_dict().items()))}, "mobilenet_v3_w035") == 0
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(logits("mobilenet_v3_w035", tmp_path / "ours.pth", images), theirs(images))


def changed(state: dict, key: str, value) -> dict:
    return {name: tensor for name, tensor in {**state, key: value}.items() if tensor is not None}


NORM = "backbone.stages.1.op_list.0.conv.depth_conv.norm"


@pytest.mark.parametrize(
    ("name", "classes", "change", "message"),
    [
        ("mobilenet_v2_w035", 1000, None, r"head.op_list.1.conv.weight is \(1280, 112, 1, 1\), and .*\(448, 112,"),
        ("mobilenet_v2_tiny", 37, None, r"head.op_list.3.linear.weight is \(37, 448\), and head.fc.w.*\(1000, 448\)"),
        ("mcunet", 1000, None, r"stages.0.op_list.0.conv.inverted_conv.conv.weight is \(24, 8, 1, 1\)"),
        ("mobilenet_v2_tiny", 1000, (f"{NORM}.running_var", None), f"{NORM} holds bias, num_batches_tracked"),
        ("mobilenet_v2_tiny", 1000, ("backbone.extra.weight", torch.zeros(1)), "backbone.extra.* are named neither as"),
        ("mobilenet_v2_tiny", 1000, ("weight", torch.zeros(1)), "weight are named neither as"),
        ("mobilenet_v2_tiny", 1000, ("epoch", 3), "'epoch' is a int: no state dict"),
    ],
)
def test_anything_else_is_one_error(name, classes, change, message, tmp_path, capsys):
    state = AUTHORS[name](classes).state_dict()
    state = changed(state, *change) if change else state
    assert convert(tmp_path, state, "mobilenet_v2_tiny") == 1
    assert not (tmp_path / "ours.pth").exists()
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and re.search(message, error), error


def most_read(weight: Tensor, count: int) -> Tensor:
    """The input channels with the largest L1 norms, in their order."""
    return weight.abs().sum((0, 2, 3)).argsort(descending=True)[:count].sort().values


@pytest.mark.parametrize("source", ["torchvision", "mmpretrain"])
def test_a_wider_checkpoint_is_cut(source, tmp_path):
    if source == "torchvision":
        from torchvision.models import mobilenet_v2

        theirs = mobilenet_v2()
        names = [
            "features.0.0.weight",
            "features.0.1.running_var",
            "features.1.conv.1.weight",
            "features.2.conv.0.0.weight",
        ]
    else:
        cfg = Config.fromfile(NETWORKS / "mobilenet_v2_w035_in1k.py")
        init_default_scope(cfg.default_scope)
        theirs = MODELS.build(dict(cfg.model, backbone=dict(type="MobileNetV2")))
        names = [
            "conv1.conv.weight",
            "conv1.bn.running_var",
            "layer1.0.conv.1.conv.weight",
            "layer2.0.conv.0.conv.weight",
        ]
        names = [f"backbone.{name}" for name in names]
    state = randomised(theirs).state_dict()
    torch.save(state, tmp_path / "theirs.pth")
    path, out = NETWORKS / "mobilenet_v2_w035_in1k.py", tmp_path / "ours.pth"
    assert run(convert_checkpoint, path, tmp_path / "theirs.pth", "--out", out, "--cut-from", 1.0) == 0
    images = torch.randn(2, 3, 64, 64)
    assert logits("mobilenet_v2_w035", out, images).isfinite().all()  # loads strictly
    cut = torch.load(out, weights_only=True)["state_dict"]
    stem, variance, project, expand = (state[name] for name in names)
    kept, narrow = most_read(project, 16), most_read(expand, 8)
    assert torch.equal(cut["backbone.conv1.conv.weight"], stem[kept])
    assert torch.equal(cut["backbone.conv1.bn.running_var"], variance[kept])
    assert torch.equal(cut["backbone.layer1.0.conv.1.conv.weight"], project[narrow][:, kept])


def test_a_cut_network_is_taught_by_the_wide_one(tmp_path):
    """The commands of docs/train.md, up to the first step."""
    wide, cut = tmp_path / "wide.pth", tmp_path / "cut.pth"
    cfg = Config.fromfile(NETWORKS / "mobilenet_v2_w035_kd_in1k.py")
    init_default_scope(cfg.default_scope)
    plain = Config.fromfile(NETWORKS / "mobilenet_v2_w035_in1k.py").model
    teacher = randomised(MODELS.build(dict(plain, backbone=dict(type="MobileNetV2"))))
    torch.save(teacher.state_dict(), wide)
    path = NETWORKS / "mobilenet_v2_w035_in1k.py"
    assert run(convert_checkpoint, path, wide, "--out", cut, "--cut-from", 1.0) == 0
    cfg.merge_from_dict(
        {
            "model.teacher": "mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py",
            "model.teacher_checkpoint": str(wide),
        }
    )
    student = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    student.init_weights()
    load_checkpoint(student, str(cut), strict=True)
    images = torch.randn(2, 3, 64, 64)
    losses = student(images, [DataSample().set_gt_label(label) for label in (0, 1)], mode="loss")
    scores, taught = student.head(student.extract_feat(images)), teacher.eval()(images)
    expected = (taught.softmax(1) * (taught.log_softmax(1) - scores.log_softmax(1))).sum() / 2
    torch.testing.assert_close(losses["loss_kd"], expected)


def test_a_wide_detector_is_cut_and_teaches(tmp_path):
    """The commands of docs/train.md, up to the first step. The configs say one class, the wide run had three."""
    init_default_scope("mmdet")
    wide, tiny = (Config.fromfile(REPO / f"configs/rtmdet_mbv3_{name}_custom.py") for name in ("w100", "w035_kd"))
    wide.model.bbox_head.num_classes = tiny.model.model.bbox_head.num_classes = 3
    wide.dump(tmp_path / "wide.py")
    torch.manual_seed(0)
    teacher = randomised(MODELS.build(wide.model))
    torch.save(dict(state_dict=teacher.state_dict(), meta={}), tmp_path / "wide.pth")
    arguments = [REPO / "configs/rtmdet_mbv3_w035_custom.py", tmp_path / "wide.pth"]
    arguments += ["--cut-from", tmp_path / "wide.py", "--out", tmp_path / "cut.pth"]
    assert run(convert_checkpoint, *arguments) == 0
    tiny.model.teacher, tiny.model.teacher_checkpoint = str(tmp_path / "wide.py"), str(tmp_path / "wide.pth")
    student = MODELS.build(tiny.model)
    student.init_weights()
    load_checkpoint(student, str(tmp_path / "cut.pth"), strict=True)
    narrow, theirs = student.state_dict(), teacher.state_dict()
    assert torch.equal(narrow["bbox_head.rtm_cls.0.weight"], theirs["bbox_head.rtm_cls.0.weight"])  # as wide as before
    reads = "neck.out_convs.0.pointwise_conv.conv.weight"  # reads the channels of the first level that were kept
    rows = {tuple(row.flatten().tolist()) for row in theirs[reads].transpose(0, 1)}
    assert {tuple(row.flatten().tolist()) for row in narrow[reads].transpose(0, 1)} < rows
    boxes = InstanceData(bboxes=torch.tensor([[10.0, 20.0, 100.0, 90.0]]), labels=torch.tensor([2]))
    samples = [DetDataSample(gt_instances=boxes, metainfo=dict(img_shape=(160, 160), pad_shape=(160, 160)))] * 2
    losses = student(torch.randn(2, 3, 160, 160), samples, mode="loss")
    assert losses["loss_kd"] > 0 and student._divergence._compare.keys() == {"neck", "bbox_head"}


def test_what_a_detector_cannot_be_cut_from_is_one_error(tmp_path, capsys):
    init_default_scope("mmdet")
    wide = REPO / "configs/rtmdet_mbv3_w100_custom.py"
    model = Config.fromfile(wide).model
    model.bbox_head.num_classes = 3
    torch.save(MODELS.build(model).state_dict(), tmp_path / "wide.pth")
    config, out = REPO / "configs/rtmdet_mbv3_w035_custom.py", tmp_path / "cut.pth"
    for cut_from, message in {
        str(tmp_path / "absent.py"): "no config file at .*absent.py",
        str(wide): "does not fit the network of --cut-from .*w100_custom.py: bbox_head.* is [(]3.* and [(]1",
        "1.0": "give the wide detector's config",
    }.items():
        assert run(convert_checkpoint, config, tmp_path / "wide.pth", "--out", out, "--cut-from", cut_from) == 1
        assert re.search(message, capsys.readouterr().err) and not out.exists()


def test_a_checkpoint_of_another_width_than_said_is_one_error(tmp_path, capsys):
    from torchvision.models import mobilenet_v2

    torch.save(mobilenet_v2(width_mult=0.5).state_dict(), tmp_path / "theirs.pth")
    path, out = NETWORKS / "mobilenet_v2_w035_in1k.py", tmp_path / "ours.pth"
    assert run(convert_checkpoint, path, tmp_path / "theirs.pth", "--out", out, "--cut-from", 1.0) == 1
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and "another width" in error and not out.exists()


def test_a_detector_starts_from_it(tmp_path):
    assert convert(tmp_path, randomised(v3(1000)).state_dict(), "mobilenet_v3_w035") == 0
    converted = torch.load(tmp_path / "ours.pth", weights_only=True)["state_dict"]
    cfg = Config.fromfile(REPO / "configs/yolov3_mbv3_w035_voc.py")
    init_default_scope(cfg.default_scope)
    needed = MODELS.build(cfg.model).backbone.state_dict()
    assert needed and all(converted[f"backbone.{name}"].shape == value.shape for name, value in needed.items())
