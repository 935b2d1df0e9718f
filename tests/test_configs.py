"""Every config: that it builds, and the paper's numbers in those that carry them."""

import ast
import functools
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import load_checkpoint
from mmengine.structures import InstanceData
from torch import nn

import mmnetaug  # noqa: F401  (registers everything)
from mmnetaug.analysis.cost import count_cost
from mmnetaug.elastic import base_state_dict, find_spaces

CONFIGS = Path(__file__).parents[1] / "configs"
# that with a teacher needs the teacher's run: test_convert_checkpoint.py builds it
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py") if "_kd_" not in path.stem)
# factors of the authors' pre-training code
WIDTH = {"mbv2": [1, 1.8, 2.6], "mbv3": [1, 2, 3]}
EXPAND = [1, 1.6, 2.2, 2.8]


def load(name: str) -> Config:
    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    init_default_scope(cfg.default_scope)
    return cfg


@functools.cache  # tracing an elastic network takes seconds; the weights of a shared model mean nothing
def build(name: str) -> nn.Module:
    return MODELS.build(load(name).model)


def build_network(name: str) -> nn.Module:
    """The model of a config, but for three classes: configs of one network and different data are built once."""
    config = load(name).model.to_dict()
    for model in (config, config.get("model", {})):
        model.pop("data_preprocessor", None)
        if "bbox_head" in model:
            model["bbox_head"]["num_classes"] = 3
    return _built(repr(config))


@functools.cache
def _built(config: str) -> nn.Module:
    return MODELS.build(ConfigDict(ast.literal_eval(config)))


def plain(name: str) -> str:
    return name.replace("_netaug", "")


def detection_names(data: str) -> list[str]:
    return [f"yolov3_{net}_w035{netaug}_{data}" for net in ("mbv2", "mbv3") for netaug in ("", "_netaug")]


def test_the_configs_that_are_promised_are_there():
    promised = [*detection_names("voc"), *detection_names("coco")]
    promised += [f"yolov3_mbv3_w035{netaug}_{data}" for netaug in ("", "_netaug") for data in ("digits", "custom")]
    for net in ("mbv2_w035", "mbv3_w035", "mcunet"):
        for netaug in ("", "_netaug"):
            promised += [f"rtmdet_{net}{netaug}_{data}" for data in ("voc", "coco", "custom", "digits")]
    promised += [f"yolox_nano{end}" for end in ("_coco", "_netaug_coco", "_relu6_coco", "_relu6_netaug_coco")]
    promised += ["yolox_nano_relu6_custom", "yolox_nano_relu6_netaug_custom"]
    assert set(promised) <= set(NAMES)


# NetAug configs differ from their plain twins in NetAug alone (tested below): one of each backbone is traced, which
# takes seconds, and one of other factors.
TRACED = ("yolov3_mbv2_w035_netaug_voc", "yolov3_mbv3_w035_netaug_voc", "yolov3_mbv3_w035_netaug_digits")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if "_netaug" not in name or name in TRACED])
def test_config_builds_and_its_tiny_network_is_the_plain_one(name):
    model = build_network(name)
    assert bool(find_spaces(model)) == ("_netaug" in name)
    if "_netaug" in name:
        build_network(plain(name)).load_state_dict(base_state_dict(model))  # strict: same names, same shapes
        assert all(group.held_reason is None for group in model.elastic.groups)


@pytest.mark.parametrize("name", [name for name in NAMES if "_netaug" in name])
def test_netaug_configs_differ_from_their_plain_twins_in_netaug_alone(name):
    ours, theirs = load(name), load(plain(name))
    assert ours.model.pop("type") == "mmnetaug.NetAug"
    assert ours.model.pop("model") == theirs.pop("model")
    assert set(ours.pop("model")) == {"width", "expand"}
    for cfg, kinds in (
        (ours, ("NetAugOptimWrapper", "TinyCheckpointHook")),
        (theirs, ("OptimWrapper", "CheckpointHook")),
    ):
        assert cfg.optim_wrapper.pop("type").removeprefix("mmnetaug.") == kinds[0]
        assert cfg.default_hooks.checkpoint.pop("type").removeprefix("mmnetaug.") == kinds[1]
    assert ours.to_dict() == theirs.to_dict()


def test_both_configs_of_yolox_nano_with_relu6_have_one_network():
    ours, theirs = build_network("yolox_nano_relu6_custom"), build_network("yolox_nano_relu6_coco")
    assert str(ours.backbone) == str(theirs.backbone) and str(ours.neck) == str(theirs.neck)
    assert str(ours.bbox_head) == str(theirs.bbox_head)


@pytest.mark.parametrize("name", [*detection_names("voc"), *detection_names("coco")])
def test_recipe_is_the_papers(name):
    cfg = load(name)
    is_voc, net = name.endswith("voc"), name.split("_")[1]
    batch, epochs, classes = (64, 200, 20) if is_voc else (128, 120, 80)
    model = cfg.model
    if "_netaug" in name:
        assert (model.width, model.expand) == (WIDTH[net], EXPAND)
        model = model.model
    assert model.bbox_head.num_classes == classes
    (resize,) = model.data_preprocessor.batch_augments
    assert (resize.random_size_range, resize.size_divisor) == ((320, 608), 32)
    gpus = 8 if is_voc else 16  # as the paper has them (section 4.1)
    assert cfg.train_dataloader.batch_size * gpus == cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler[1].milestones == [epochs * 8 // 10, epochs * 9 // 10]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.momentum, optimizer.weight_decay) == ("SGD", 0.9, 5e-4)
    assert optimizer.lr / batch == pytest.approx(1e-3 / 64)
    assert [step.scale for step in cfg.test_dataloader.dataset.pipeline if step.type == "Resize"] == [(416, 416)]
    metric = "pascal_voc/mAP" if is_voc else "coco/bbox_mAP_50"
    assert cfg.default_hooks.checkpoint.save_best == metric
    if is_voc:
        assert cfg.val_evaluator.eval_mode == "11points"
        trained_on = [one.ann_file for one in cfg.train_dataloader.dataset.datasets]
        assert trained_on == [f"VOC{year}/ImageSets/Main/trainval.txt" for year in (2007, 2012)]
        assert cfg.test_dataloader.dataset.ann_file == "VOC2007/ImageSets/Main/test.txt"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("yolov3_mbv2_w035_voc", 394),
        ("yolov3_mbv3_w035_voc", 345),
        ("yolov3_mbv2_w035_coco", 473),
        ("yolov3_mbv3_w035_coco", 424),
    ],
)
def test_configured_detector_costs_what_the_paper_states(name, macs):
    model = build(name)
    assert count_cost(model, (1, 3, 416, 416)).macs / 1e6 == pytest.approx(macs, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov3_mbv2_w035_voc", "yolov3_mbv3_w035_netaug_digits"])
def test_pretrained_classifier_fills_the_backbone(name, tmp_path):
    """``load_from`` of a tiny classifier: what MMEngine's Runner does with it, without the Runner."""
    torch.manual_seed(0)
    model = build_network(name)
    donor = MODELS.build({**load(plain(name)).model.backbone, "out_indices": (2, 4, 5, 6)})
    for parameter in donor.parameters():
        nn.init.uniform_(parameter)
    weights = {f"backbone.{key}": value for key, value in donor.state_dict().items()}
    torch.save({"state_dict": weights | {"head.fc.weight": torch.zeros(1000, 1280)}}, tmp_path / "tiny.pth")
    load_checkpoint(model, str(tmp_path / "tiny.pth"), map_location="cpu", strict=False)
    loaded = base_state_dict(model) if find_spaces(model) else model.state_dict()
    backbone = {key: value for key, value in loaded.items() if key.startswith("backbone.")}
    assert backbone
    assert all(torch.equal(value, weights[key]) for key, value in backbone.items())
    for parameter in model.backbone.parameters():  # new channels are drawn from what was loaded, all of it in [0, 1)
        assert parameter.min() >= 0 and parameter.max() < 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [320, 608])
def test_voc_model_trains_at_both_ends_of_its_scales(size):
    torch.manual_seed(0)
    model = build("yolov3_mbv3_w035_voc")
    model.train()
    model.zero_grad()
    model.init_weights()
    boxes = InstanceData(bboxes=torch.tensor([[10.0, 20.0, 200.0, 300.0]]), labels=torch.tensor([7]))
    samples = [DetDataSample(gt_instances=boxes, metainfo=dict(img_shape=(size, size))) for _ in range(2)]
    losses = model.loss(torch.randn(2, 3, size, size), samples)
    sum(level for levels in losses.values() for level in levels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_configs_import_nothing():
    """MMEngine takes a config with an import for one of its lazy configs, which cannot inherit from the others."""
    for path in CONFIGS.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes), path
