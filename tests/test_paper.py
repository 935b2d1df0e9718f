"""The paper's rows: every config says what ``configs/metafile.yml`` says, builds, and trains."""

from __future__ import annotations

import copy
import functools
import importlib.util
from pathlib import Path

import pytest
import torch
import yaml
from data_fixtures import (
    make_cars,
    make_coco,
    make_cub200,
    make_flowers102,
    make_food101,
    make_pets,
    make_synset_folders,
    make_voc_devkit,
)
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, init_default_scope
from torch import nn

from mmnetaug.analysis.cost import find_input_shape
from mmnetaug.apis.build import build_runner
from mmnetaug.apis.preflight import check_training
from mmnetaug.datasets import set_data_root
from mmnetaug.elastic import base_state_dict, find_spaces

REPO = Path(__file__).parents[1]
CONFIGS = REPO / "configs"
spec = importlib.util.spec_from_file_location("tool_paper", REPO / "tools/paper.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
NETWORKS, ROWS = tool.NETWORKS, tool.ROWS
SETS = ("food101", "flowers102", "cars", "cub200", "pets")
SET_LABELS = dict(zip(SETS, ("Food101", "Flowers102", "Cars", "Cub200", "Pets"), strict=True))
LEAVES = sorted(
    str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("classification/*/*.py") if "_base_" not in str(path)
)
CLASSES = {"ImageNet": 1000, "ImageNet-21K-P": 10450, "VOC": 20, "COCO": 80}
CLASSES |= dict(zip(SET_LABELS.values(), (101, 102, 196, 200, 37), strict=True))


@functools.cache
def read(config: str) -> Config:
    return Config.fromfile(CONFIGS / config)


def load(config: str, options: tuple[str, ...] = ()) -> Config:
    cfg = copy.deepcopy(read(config))
    pairs = (option.split("=", 1) for option in options)
    cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in pairs})
    init_default_scope(cfg.default_scope)
    return cfg


def plain_model(model: dict) -> dict:
    return plain_model(model.model) if "model" in model else model


def steps(pipeline: list, kind: str) -> list:
    return [step for step in pipeline if step.type.endswith(kind)]


# --- what configs say -------------------------------------------------------------------------------------------------


def family(config: str) -> str:
    """A family differs in the data set alone, or in whether one recipe has NetAug and distillation."""
    if "transfer" in config or "tinytl" in config:
        return config.rpartition("_")[0]
    if "imagenet" in config and TINY not in config:
        return config.replace("_netaug", "").replace("_kd", "")
    return config


TINY = "mobilenet_v2_tiny"
# of each family the row with NetAug, where there is one; its plain twin is compared with it below
NETAUG_LAST = sorted(ROWS, key=lambda row: row.method == "NetAug")
OF_EACH_FAMILY = list({family(row.config): row for row in NETAUG_LAST}.values())


@pytest.mark.parametrize("row", OF_EACH_FAMILY, ids=lambda row: f"{row.config}-{row.method}")
def test_the_config_of_a_row_says_what_the_table_says(row):
    cfg, recipe, network = load(row.config, row.options), row.recipe, NETWORKS[row.network]
    optimizer, base = cfg.optim_wrapper.optimizer, cfg.auto_scale_lr
    assert cfg.train_cfg.max_epochs == recipe.epochs
    assert cfg.train_dataloader.batch_size * recipe.gpus == recipe.batch
    assert base.enable and optimizer.lr * recipe.batch / base.base_batch_size == pytest.approx(recipe.lr)
    assert (optimizer.type, optimizer.momentum) == ("SGD", 0.9)
    assert optimizer.weight_decay == recipe.weight_decay
    assert find_input_shape(cfg, nn.Module())[2:] == (recipe.size, recipe.size)

    model = plain_model(cfg.model)
    head = model.bbox_head if row.metric == "AP50" else model.head
    assert head.num_classes == CLASSES[row.data]
    assert (cfg.model.type == "mmnetaug.NetAug") == row.netaug
    assert (cfg.model.type == "mmnetaug.TinyTL") == (row.method == "TinyTL")
    wrapped = cfg.model.model if row.netaug else cfg.model
    assert (wrapped.type == "mmnetaug.Distilled") == ("KD" in row.method)
    if row.netaug:
        assert (tuple(cfg.model.width), tuple(cfg.model.expand)) == (network.width, network.expand)
        assert cfg.model.init == "authors"
        assert cfg.default_hooks.netaug_schedule.width_until == 0.5
        assert cfg.default_hooks.channel_sort.type == "mmnetaug.ChannelSortHook"
    if row.metric == "top-1":
        check_classification(row, cfg, head)


def check_classification(row, cfg, head):
    assert cfg.optim_wrapper.optimizer.nesterov
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.type, warm_up.end, warm_up.convert_to_iter_based) == ("LinearLR", 5, True)
    assert (cosine.type, cosine.begin, cosine.convert_to_iter_based) == ("CosineAnnealingLR", 5, True)
    assert "end" not in cosine and "T_max" not in cosine  # so that they follow max_epochs
    assert head.loss == dict(type="LabelSmoothLoss", label_smooth_val=0.1)
    size, pipelines = row.recipe.size, [cfg[f"{split}_dataloader"].dataset.pipeline for split in ("train", "val")]
    if row.method != "No augmentation":
        [crop], [jitter] = steps(pipelines[0], "RandomResizedCrop"), steps(pipelines[0], "ColorJitter")
        assert crop.scale == size
        assert jitter.brightness == pytest.approx(32 / 255) and jitter.saturation == 0.5
    [edge] = steps(pipelines[1], "ResizeEdge")
    assert edge.scale == -(-size * 1000 // 875)
    if row.data in SET_LABELS.values():
        assert head.get("dropout") == row.recipe.dropout


def test_options_say_what_their_row_is_about():
    """For rows that share a config, the part of it that the table has no column for."""
    found = {}
    for row in ROWS:
        if "ablations" in row.config:
            cfg = load(row.config, row.options)
            pipeline = cfg.train_dataloader.dataset.pipeline
            found[row.method] = (
                cfg.model.head.get("dropout"),
                (cfg.model.get("train_cfg") or {}).get("augments", {}).get("alpha"),
                cfg.model.backbone.get("drop_block", {}).get("drop_prob"),
                [(step.get("num_policies"), step.get("magnitude_level")) for step in steps(pipeline, "RandAugment")],
                [step.policies for step in steps(pipeline, "AutoAugment")],
            )
    none = (None, None, None, [], [])
    assert found == {
        "Dropout, keep 0.9": (0.1, *none[1:]),
        "Dropout, keep 0.8": (0.2, *none[1:]),
        "MixUp, α = 0.2": (None, 0.2, *none[2:]),
        "MixUp, α = 0.1": (None, 0.1, *none[2:]),
        "AutoAugment": (*none[:4], ["imagenet"]),
        "RandAugment, N = 2, M = 9": (*none[:3], [(2, 9)], []),
        "RandAugment, N = 1, M = 9": (*none[:3], [(1, 9)], []),
        "DropBlock, keep 0.9, size 5": (*none[:2], 0.1, [], []),
        "DropBlock, keep 0.95, size 5": (*none[:2], 0.05, [], []),
        "No augmentation": none,
    }


def test_every_classification_config_is_in_the_table():
    in_table = {row.config for row in ROWS}
    assert {name for name in LEAVES if "cifar10" not in name} <= in_table
    assert all((CONFIGS / name).is_file() for name in in_table)


# --- what they build --------------------------------------------------------------------------------------------------


def swap_large_teacher(model: ConfigDict) -> None:
    """The paper's teacher has 152 layers, which take seconds to build."""
    if model.get("teacher", "").startswith("mmpretrain::resnet/resnetv1d152"):
        model.teacher = "mmpretrain::resnet/resnet18_8xb32_in1k.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({family(name): name for name in LEAVES if "_netaug" not in name}.values()))
def test_config_builds(name, monkeypatch):
    cfg = load(name)
    monkeypatch.chdir(REPO)  # the CIFAR-10 teacher is named by its path
    swap_large_teacher(cfg.model)
    model = MODELS.build(cfg.model)
    check_training(cfg, model)
    assert not find_spaces(model)


@pytest.mark.parametrize("name", [name for name in LEAVES if "_netaug" in name])
def test_netaug_config_wraps_the_model_of_its_plain_twin(name):
    ours, plain = load(name), load(name.replace("_netaug", ""))
    assert ours.model.model == plain.model
    assert ours.optim_wrapper.pop("type") == "mmnetaug.NetAugOptimWrapper"
    assert plain.optim_wrapper.pop("type") == "OptimWrapper"
    assert ours.optim_wrapper == plain.optim_wrapper
    for key in ("train_dataloader", "val_dataloader", "param_scheduler", "train_cfg", "data_preprocessor"):
        assert ours[key] == plain[key]


# Tracing takes seconds: once for each architecture. The distilled configs train the same networks, and those of width
# 1.0 have the layers of 0.35.
TRACED = [f"classification/imagenet/{name}_netaug_in1k.py" for name in NETWORKS if not name.endswith("w100")]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_netaug_config_builds(name, monkeypatch):
    plain, ours = load(name.replace("_netaug", "")).model, load(name).model
    monkeypatch.chdir(REPO)
    for model in (plain, ours.model):
        swap_large_teacher(model)
    model = MODELS.build(ours)
    reasons = {group.held_reason for group in model.elastic.groups}
    assert reasons <= {None, "has no other width at these factors"}
    assert None in reasons
    MODELS.build(plain).load_state_dict(base_state_dict(model))


# --- what they train --------------------------------------------------------------------------------------------------


@HOOKS.register_module()  # by name: the original line's MMEngine cannot print a config that holds a class
class OneEpoch(Hook):
    """Ends a run after its first epoch, with the schedule of the whole run."""

    def after_train_epoch(self, runner):
        runner.train_loop.stop_training = True


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Makes each data set once."""
    makers = {
        "imagenet": make_synset_folders,
        "imagenet21k": lambda root: make_synset_folders(root, ("imagenet21k_train", "imagenet21k_val"), 20),
        "voc": lambda root: make_voc_devkit(root, 2, 2, 3),
        "coco": make_coco,
        **dict(zip(SETS, (make_food101, make_flowers102, make_cars, make_cub200, make_pets), strict=True)),
    }

    @functools.cache
    def make(name: str) -> str:
        return f"{makers[name](tmp_path_factory.mktemp('data') / name)}/"

    return make


def few_images(dataset: dict, count: int) -> None:
    for part in dataset.get("datasets") or [dataset.get("dataset")]:
        if part is None:
            dataset.indices = count
        else:
            few_images(part, count // len(dataset.get("datasets") or [0]))


RUNS = {
    **{f"classification/imagenet/{TINY}{kind}_in1k.py": "imagenet" for kind in ("", "_netaug", "_kd", "_netaug_kd")},
    f"classification/imagenet21k/{TINY}_in21k_p.py": "imagenet21k",
    **{
        f"classification/ablations/{TINY}_{kind}_in1k.py": "imagenet"
        for kind in ("dropout", "mixup", "autoaugment", "randaugment", "dropblock", "noaug")
    },
    **{f"classification/transfer/mobilenet_v2_w035_{name}.py": name for name in SETS},
    "classification/tinytl/mobilenet_v2_w035_tinytl_pets.py": "pets",
    "yolov3_mbv2_w035_voc.py": "voc",
    "yolov3_mbv2_w035_mixup_voc.py": "voc",
    "yolov3_mbv2_w035_coco.py": "coco",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_iterations_and_validation(name, data, tmp_path, monkeypatch):
    cfg = load(name)
    set_data_root(cfg, data(RUNS[name]))
    cfg.work_dir, cfg.custom_hooks = str(tmp_path), [dict(type="OneEpoch")]
    cfg.log_level, cfg.randomness = "ERROR", dict(seed=0)
    cfg.train_cfg.val_interval = 1
    cfg.default_hooks.checkpoint = None
    size = 1 if name.startswith("yolov3") else 2
    for split, batches in (("train", 2), ("val", 1)):
        loader = cfg[f"{split}_dataloader"]
        loader.update(batch_size=size, num_workers=0, persistent_workers=False)
        few_images(loader.dataset, batches * size)
    distilled = cfg.model.model if cfg.model.type == "mmnetaug.NetAug" else cfg.model
    if "teacher" in distilled:
        teacher = dict(
            type="ImageClassifier",
            backbone=dict(type="ResNet", depth=18, base_channels=8, stem_channels=8),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=1000, in_channels=64),
        )
        torch.save(MODELS.build(teacher).state_dict(), tmp_path / "teacher.pth")
        distilled.update(teacher=teacher, teacher_checkpoint=str(tmp_path / "teacher.pth"))
    runner = build_runner(cfg)
    before = copy.deepcopy(dict(runner.model.named_parameters()))
    runner.train()
    assert (runner.iter, runner.epoch) == (2, 1)
    scalars = runner.message_hub.log_scalars
    assert torch.tensor(scalars["train/loss"].data[0]).isfinite().all()
    assert ("train/loss_aug" in scalars) == ("_netaug" in name)
    assert ("train/loss_kd" in scalars) == ("_kd" in name)
    assert any(key.startswith("val/") and key.split("/")[1] not in ("time", "data_time") for key in scalars)
    assert ("val/train_accuracy/top1" in scalars) == ("classification" in name)
    learnt = [key for key, value in runner.model.named_parameters() if not torch.equal(value, before[key])]
    assert any(key.startswith("backbone.") for key in learnt)


# --- the metafile -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_networks_cost_what_the_metafile_says():
    figures = tool.count_networks()
    assert [one["network"] for one in figures] == list(NETWORKS)
    for one in figures:
        network = NETWORKS[one["network"]]
        assert (one["input"], one["params"], one["macs"]) == (network.size, network.params, network.macs)


def test_mim_finds_the_configs():
    index = yaml.safe_load((REPO / "mmnetaug/.mim/model-index.yml").read_text())
    models = [
        model
        for path in index["Import"]
        for model in yaml.safe_load((REPO / "mmnetaug/.mim" / path).read_text())["Models"]
    ]
    assert len({model["Name"] for model in models}) == len(models)
    runnable = [path.relative_to(REPO) for path in CONFIGS.rglob("*.py") if "_base_" not in str(path)]
    expected = {str(path) for path in runnable if path.parts[1] != "study"}
    assert {model["Config"] for model in models} == expected, "run: python tools/paper.py --write"


def test_new_configs_are_added_to_the_metafile():
    text = tool.METAFILE.read_text()
    without = text[: text.rindex("- Name: ")]
    assert yaml.safe_load(tool.with_all_configs(without)) == yaml.safe_load(text) != yaml.safe_load(without)
    assert tool.with_all_configs(text) == text
