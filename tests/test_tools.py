"""The command line tools, on a data set of a few drawn images: they work, and they stop early with one clear error."""

from __future__ import annotations

import errno
import gc
import http.server
import importlib.util
import json
import os
import pickle
import re
import shutil
import threading
from pathlib import Path

import cv2
import pytest
import torch
from data_fixtures import make_class_folders, make_voc_folder
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from networks import build_pair, detector_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmnetaug.apis import train as training
from mmnetaug.apis.cli import AUTO, SECTIONS, add_runner_arguments, check_names, config_parser, shipped_configs
from mmnetaug.apis.evaluation import load_tiny
from mmnetaug.apis.load import load_config
from mmnetaug.apis.options import check_options
from mmnetaug.apis.preflight import NetworkReport, check_training, check_weights
from mmnetaug.elastic import ChannelGroup, ElasticSpace, find_spaces
from mmnetaug.errors import UserError, WriteError
from mmnetaug.files import replaced_when_done

REPO = Path(__file__).parents[1]
CLASSES = ("cat", "dog", "emu")

DETECTOR = """
_base_ = ["{repo}/configs/_base_/custom_data.py", "mmdet::_base_/default_runtime.py"]
custom_imports = dict(imports=["mmnetaug"])
model = {model}
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(64, 64)),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(64, 64)),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_dataloader = dict(**loader, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(**loader, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=2)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=1e-3, momentum=0.9))
randomness = dict(seed=0)
"""
NETAUG = """
_base_ = "{plain}"
model = dict(_delete_=True, type="mmnetaug.NetAug", model={{{{_base_.model}}}}, width=[1, 2], expand=[1, 1.5])
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
"""
TAUGHT = """
_base_ = "{plain}"
model = dict(
    _delete_=True, type="mmnetaug.Distilled", model={{{{_base_.model}}}}, teacher="absent.py",
    teacher_checkpoint="absent.pth",
)
"""
CLASSIFIER = """
_base_ = "mmpretrain::_base_/default_runtime.py"
custom_imports = dict(imports=["mmnetaug"])
model = dict(
    type="mmnetaug.NetAug",
    model=dict(
        type="ImageClassifier",
        backbone=dict(type="ResNet", depth=18, base_channels=8, stem_channels=8),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=2, in_channels=64, loss=dict(type="CrossEntropyLoss")),
    ),
    width=[1, 2],
    input_size=64,
)
data_preprocessor = dict(num_classes=2, mean=[127, 127, 127], std=[64, 64, 64])
pipeline = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=64), dict(type="PackInputs")]
loader = dict(batch_size=4, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True))
train_dataloader = dict(**loader, dataset=dict(type="CustomDataset", data_root="{data}/train", pipeline=pipeline))
val_dataloader = dict(**loader, dataset=dict(type="CustomDataset", data_root="{data}/val", pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy")
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper", optimizer=dict(type="SGD", lr=0.1))
"""


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", REPO / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train, test, describe = (load_tool(name) for name in ("train", "test", "describe"))


def run(tool, *args) -> int:
    return tool.main([str(arg) for arg in args])


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Data, and configs with and without NetAug."""
    place = tmp_path_factory.mktemp("tools")
    make_voc_folder(place / "data", dict(train=4, val=4), CLASSES)
    (place / "plain.py").write_text(DETECTOR.format(repo=REPO, model=detector_config("resnet18")))
    (place / "netaug.py").write_text(NETAUG.format(plain=place / "plain.py"))
    return place


@pytest.fixture(scope="session")
def trained(place) -> Path:
    """Work directory of two epochs of two iterations with NetAug."""
    work_dir = place / "trained"
    assert run(train, place / "netaug.py", "--data-root", place / "data", "--work-dir", work_dir) == 0
    return work_dir


# --- train ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_writes_full_and_tiny_checkpoints(trained):
    names = {path.name for path in trained.glob("*.pth")}
    assert names >= {"epoch_1.pth", "epoch_2.pth", "epoch_1_tiny.pth", "epoch_2_tiny.pth"}
    [log] = trained.glob("*/*.log")
    text = log.read_text()
    assert re.search(r"NetAug: \d+ of \d+ channel groups augmented", text)
    assert "train: 4 images (4 decoded)" in text
    assert "pascal_voc/mAP" in text
    assert "loss_aug" in text


@pytest.mark.slow
def test_resume_goes_on_where_the_run_stopped(place, trained, tmp_path):
    work_dir = tmp_path / "moved"
    shutil.copytree(trained, work_dir)
    (work_dir / "last_checkpoint").write_text("/where/it/was/epoch_2.pth")
    more = ["--resume", "--cfg-options", "train_cfg.max_epochs=3"]
    assert run(train, place / "netaug.py", "--data-root", place / "data", "--work-dir", work_dir, *more) == 0
    assert (work_dir / "epoch_3_tiny.pth").is_file()
    state = torch.load(work_dir / "epoch_3.pth", weights_only=False)
    assert state["meta"]["iter"] == 6


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_classes(place, trained, tmp_path, capsys):
    work_dir = tmp_path / "run"
    shutil.copytree(trained, work_dir)
    full = torch.load(work_dir / "epoch_2.pth", weights_only=False)
    full["meta"]["dataset_meta"]["classes"] = full["meta"]["dataset_meta"]["classes"][::-1]
    torch.save(full, work_dir / "epoch_2.pth")
    (work_dir / "last_checkpoint").write_text(str(work_dir / "epoch_2.pth"))
    assert run(train, place / "netaug.py", "--data-root", place / "data", "--work-dir", work_dir, "--resume") == 1
    assert "was trained on other classes, or in another order" in capsys.readouterr().err


@pytest.mark.slow
def test_input_sizes_are_set_and_tests_leave_the_config_of_training_alone(place, tmp_path, capsys):
    work_dir = ["--data-root", place / "data", "--work-dir", tmp_path, "--size", 64]
    assert run(train, place / "plain.py", *work_dir, "--epochs", 1, "--batch-size", 3) == 0
    saved = (tmp_path / "plain.py").read_text()
    assert Config.fromfile(tmp_path / "plain.py").train_dataloader.batch_size == 3
    sizes = re.findall(r"scale=\(\s*(\d+),\s*(\d+),?\s*\)", saved)
    assert sizes and set(sizes) == {("64", "64")}
    assert run(test, tmp_path / "plain.py", tmp_path / "epoch_1.pth", "--work-dir", tmp_path, "--json", "-") == 0
    assert (tmp_path / "plain.py").read_text() == saved and (tmp_path / "test/plain.py").is_file()
    capsys.readouterr()
    assert run(train, place / "netaug.py", *work_dir, "--resume") == 1
    assert "is from plain training" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_user_sees_of_a_training(place, tmp_path, capfd):
    """Its findings on the terminal and the rest in the log; curves, a picture of the best and its twin alone."""
    options = ["--cfg-options", "default_hooks.checkpoint.save_best=auto", "train_cfg.val_interval=1"]
    args = [place / "plain.py", "--data-root", place / "data", "--work-dir", tmp_path, "--epochs", 1, "--tensorboard"]
    assert run(train, *args, *options) == 0
    shown = capfd.readouterr().out
    [log] = tmp_path.glob("*/*.log")
    for text in ("System environment:", "Config:\n", "Hooks will be executed"):
        assert text in log.read_text() and text not in shown
    assert "preflight:" in shown and "Saving checkpoint at 1 epochs" in shown
    assert cv2.imread(str(tmp_path / "curves.png")).shape[1] > cv2.imread(str(tmp_path / "curves.png")).shape[0] * 2
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"epoch_1.pth", "epoch_1_tiny.pth", "best_pascal_voc_mAP_epoch_1_tiny.pth"}
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.*"))))
    events.Reload()
    [image] = events.Images("best")
    picture = cv2.imread(str(tmp_path / "best.png"))
    assert (image.height, image.width) == picture.shape[:2]
    assert "loss" in events.Tags()["scalars"]


def test_a_backend_that_is_not_installed_is_one_error(place, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name != "wandb" else None)
    assert run(train, place / "plain.py", "--data-root", place / "data", "--work-dir", tmp_path, "--wandb") == 1
    assert "--wandb needs the package wandb: pip install wandb" in capsys.readouterr().err


def test_epochs_scale_the_schedules_that_count_them():
    cfg = Config.fromfile(REPO / "configs/yolov3_mbv3_w035_voc.py")
    [warm_up, steps] = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == 200 and steps.milestones == [160, 180]
    before = dict(warm_up)
    training.set_epochs(cfg, 20)
    assert cfg.train_cfg.max_epochs == 20 and steps.milestones == [16, 18]
    assert not warm_up.by_epoch and warm_up == before
    with pytest.raises(UserError, match="counts epochs"):
        training.set_epochs(Config(dict(train_cfg=dict(by_epoch=False, max_iters=100))), 10)


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--size"])
@pytest.mark.parametrize("value", [0, -4])
def test_counts_below_one_are_one_error(option, value, capsys):
    with pytest.raises(SystemExit):
        run(train, "config.py", option, value)
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"argument {option}: must be 1 or more, got {value}")


@pytest.mark.slow
def test_classifiers_train_too_and_netaug_stays_on_in_mixed_precision(tmp_path):
    make_class_folders(tmp_path / "data")
    (tmp_path / "classifier.py").write_text(CLASSIFIER.format(data=tmp_path / "data"))
    assert run(train, tmp_path / "classifier.py", "--work-dir", tmp_path / "run", "--amp") == 0
    [log] = tmp_path.glob("run/*/*.log")
    assert "loss_aug" in log.read_text()
    assert "mmnetaug.NetAugAmpOptimWrapper" in (tmp_path / "run/classifier.py").read_text()
    assert (tmp_path / "run/epoch_1_tiny.pth").is_file()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("OptimWrapper", "AmpOptimWrapper"),
        ("mmnetaug.NetAugOptimWrapper", "mmnetaug.NetAugAmpOptimWrapper"),
        ("NetAugOptimWrapper", "mmnetaug.NetAugAmpOptimWrapper"),
        ("mmnetaug.NetAugAmpOptimWrapper", "mmnetaug.NetAugAmpOptimWrapper"),
    ],
)
def test_amp(before, after, monkeypatch):
    monkeypatch.setattr(training, "get_device", lambda: "cuda")
    cfg = Config(dict(optim_wrapper=dict(type=before, alpha=0.5)))
    training.use_amp(cfg)
    assert cfg.optim_wrapper == dict(type=after, alpha=0.5)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_amp_is_refused_where_mmengine_s_wrapper_does_not_run(device, monkeypatch):
    monkeypatch.setattr(training, "get_device", lambda: device)
    with pytest.raises(UserError, match=f"needs a GPU: .* does not run on {device}"):
        training.use_amp(Config(dict(optim_wrapper=dict(type="OptimWrapper"))))
    cfg = Config(dict(optim_wrapper=dict(type="mmnetaug.NetAugOptimWrapper")))
    training.use_amp(cfg)
    assert cfg.optim_wrapper.type == "mmnetaug.NetAugAmpOptimWrapper"


def test_amp_is_refused_where_it_would_switch_something_off():
    with pytest.raises(UserError, match="no mixed-precision twin of optim_wrapper"):
        training.use_amp(Config(dict(optim_wrapper=dict(type="ApexOptimWrapper"))))


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ({}, dict(type="mmnetaug.TinyCheckpointHook", interval=1)),
        (dict(type="CheckpointHook", interval=7), dict(type="mmnetaug.TinyCheckpointHook", interval=7)),
        (dict(type="MyCheckpointHook"), dict(type="MyCheckpointHook")),
        (None, None),
    ],
)
def test_checkpoint_hook(hook, expected):
    given = dict(checkpoint=hook) if hook != {} else {}
    cfg = Config(dict(default_hooks=dict(timer=dict(type="IterTimerHook"), **given)))
    training.use_tiny_checkpoints(cfg)
    assert cfg.default_hooks == dict(timer=dict(type="IterTimerHook"), checkpoint=expected)


def test_scaled_learning_rate():
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=64)))
    training.use_scaled_lr(cfg)
    assert cfg.auto_scale_lr == dict(base_batch_size=64, enable=True)
    with pytest.raises(UserError, match="base_batch_size"):
        training.use_scaled_lr(Config({}))


def test_the_newest_checkpoint_is_resumed_where_the_note_of_the_last_is_empty(tmp_path):
    for name in ("epoch_9.pth", "epoch_10.pth", "epoch_10_tiny.pth", "best_mAP_epoch_9.pth"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "epoch_9.pth", (1, 1))
    for note in ("", str(tmp_path / "moved/epoch_11.pth")):
        (tmp_path / "last_checkpoint").write_text(note)
        assert training.find_last_checkpoint(tmp_path) == str(tmp_path / "epoch_10.pth")
    (tmp_path / "last_checkpoint").write_text("/elsewhere/epoch_9.pth")
    assert training.find_last_checkpoint(tmp_path) == str(tmp_path / "epoch_9.pth")


def test_nothing_to_resume_is_a_start(tmp_path, capsys):
    cfg = Config(dict(work_dir=str(tmp_path), load_from="pretrained.pth"))
    training.set_resume(cfg, AUTO)
    assert cfg.load_from == "pretrained.pth" and not cfg.get("resume")
    assert "starting from the beginning" in capsys.readouterr().out


# --- test -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tiny_checkpoint_is_the_elastic_one_at_base_width(place, trained, tmp_path, capsys):
    common = ["--data-root", place / "data", "--work-dir", tmp_path]
    out = tmp_path / "tiny.pkl"
    args = [*common, "--json", "-", "--out", out, "--show-dir", tmp_path / "shown"]
    assert run(test, place / "plain.py", trained / "epoch_2_tiny.pth", *args) == 0
    figures = json.loads(capsys.readouterr().out)
    assert "pascal_voc/mAP" in figures["metrics"]
    assert len(list((tmp_path / "shown").glob("*.jpg"))) == 4

    # a full checkpoint, in a work directory that is not its own
    args = [*common, "--json", tmp_path / "full.json", "--out", tmp_path / "full.pkl", "--trust-checkpoint"]
    assert run(test, place / "netaug.py", trained / "epoch_2.pth", *args) == 0
    assert json.loads((tmp_path / "full.json").read_text())["metrics"] == figures["metrics"]
    with out.open("rb") as tiny, (tmp_path / "full.pkl").open("rb") as full:
        tiny, full = pickle.load(tiny), pickle.load(full)
    assert len(tiny) == 4
    for one, other in zip(tiny, full, strict=True):
        assert all(one["pred_instances"][key].equal(other["pred_instances"][key]) for key in one["pred_instances"])
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"tiny.pkl", "full.pkl", "full.json"} | {
        path.name for path in tmp_path.glob("*.py")
    }


# --- describe ---------------------------------------------------------------------------------------------------------


def test_describe_a_plain_config_without_data(place, tmp_path, capsys):
    args = ["--data-root", tmp_path / "absent", "--size", 96, "--json", tmp_path / "a/b.json"]
    assert run(describe, place / "plain.py", *args) == 0
    text = capsys.readouterr().out
    assert "NetAug: off" in text and "data: not usable yet" in text
    figures = json.loads((tmp_path / "a/b.json").read_text())
    assert figures["groups"] == [] and figures["input_shape"] == [1, 3, 96, 96] and figures["macs"] > 0
    assert "absent" in figures["data_problem"]


@pytest.mark.parametrize(("budget", "code"), [(["--flash", "1KB"], 1), (["--flash", "999MB", "--sram", "999MB"], 0)])
def test_describe_fails_where_the_network_exceeds_the_budget(place, budget, code, capsys):
    assert run(describe, place / "plain.py", "--size", 64, *budget) == code
    assert ("does not fit" in capsys.readouterr().out) == bool(code)


def test_describe_measures_the_latency_of_the_tiny_network(place, tmp_path, capsys, monkeypatch):
    def measure(model, shape, tflite_python):
        assert not find_spaces(model) and not model.training and shape == (1, 3, 64, 64) and tflite_python == "python"
        return dict(latency_ms=2.0, onnx_ms=1.0)

    monkeypatch.setattr("mmnetaug.apis.describe.measure_latency", measure)
    args = ["--latency", "--tflite-python", "python", "--json", tmp_path / "figures.json"]
    assert run(describe, place / "netaug.py", *args) == 0
    assert "latency: PyTorch 2.0 ms, ONNX Runtime 1.0 ms" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["latency"] == dict(latency_ms=2.0, onnx_ms=1.0)


def test_held_groups_are_listed_with_their_reason():
    held = ChannelGroup("backbone.last", "width", 8, held_reason="chunked")
    free = ChannelGroup("backbone.stem", "width", 8, factors=(1.0, 2.0))
    report = NetworkReport("YOLOV3", "ResNet", 10, None, "reasons", [free, held])
    assert "1 of 2 channel groups augmented" in str(report)
    assert re.search(r"at base +1 +chunked: backbone.last", str(report))
    assert report.figures()["groups"] == [
        dict(name="backbone.stem", role="width", base_width=8, widths=[8, 16], held_reason=None),
        dict(name="backbone.last", role="width", base_width=8, widths=[8], held_reason="chunked"),
    ]


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_taught_network_is_used_without_its_teacher(place, trained, tmp_path, capsys):
    config, data = tmp_path / "taught.py", ["--data-root", place / "data"]
    config.write_text(TAUGHT.format(plain=place / "plain.py"))
    checkpoint = trained / "epoch_2_tiny.pth"
    assert run(test, config, checkpoint, *data) == 0
    assert run(describe, config, *data) == 0
    photo = next((place / "data/JPEGImages").iterdir())
    assert run(load_tool("predict"), config, checkpoint, photo, *data, "--out-dir", tmp_path / "out") == 0
    capsys.readouterr()
    assert run(train, config, *data, "--work-dir", tmp_path / "work") == 1
    assert "no checkpoint at absent.pth" in capsys.readouterr().err


@pytest.fixture(scope="session")
def bad(place) -> dict[str, Path]:
    """Files that must be refused."""
    other = MODELS.build(Config(dict(model=detector_config("cspdarknet"))).model)
    files = {name: place / f"{name}.pth" for name in ("other", "pickled", "cut")}
    torch.save(other.state_dict(), files["other"])
    torch.save(dict(state_dict={}, object=Path("x")), files["pickled"])
    files["cut"].write_bytes(files["other"].read_bytes()[:1000])
    return files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cfg-options", "model.type=YOLOv3"], "cannot be set up: KeyError.*YOLOv3"),
        (["--cfg-options", "optim_wrapper=None", "train_cfg=None"], "it has no train_cfg, optim_wrapper"),
        (["--cfg-options", "model.wings=2"], "cannot be set up: TypeError.*wings"),
        (["--cfg-options", "optim_wrapper.type=mmnetaug.NetAugOptimWrapper"], "nothing in the model is elastic"),
        (["--cfg-options", "optim_wrapper.type=Absent"], "Absent, which is not registered"),
        (["--amp"], "needs a GPU"),
        (["--launcher", "slurm"], "started by torchrun"),
        (["--launcher", "pytorch"], "tools/dist_train.sh"),
        (["--resume", "{place}/absent.pth"], "no checkpoint at"),
        (["--resume", "{other}"], "no meta and no optimizer and no message_hub"),
        (["--cfg-options", "load_from={other}"], "another network: .* tensors of this one, .* absent.*--allow-partial"),
        (["--cfg-options", "load_from={pickled}"], "--trust-checkpoint"),
        (["--cfg-options", "load_from={cut}"], "damaged, cut short"),
        (
            ["--cfg-options", "model.backbone.init_cfg.type=Pretrained", "model.backbone.init_cfg.checkpoint={other}"],
            "another network",
        ),
        (["--cfg-options", "default_hooks.checkpoint.max_keep_ckpt=2"], "max_keep_ckpt is no option of CheckpointHook"),
        (["--data-root", "{place}/absent"], "no data: there is no folder"),
        (["--cfg-options", "train_dataloader.dataset.ann_fil=x"], "ann_fil is no option of VOCLayoutDataset"),
        (["--cfg-options", "classes=cat,dog,unicorn"], "no annotation has the class unicorn"),
    ],
)
def test_training_stops_before_it_starts(place, bad, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(Runner, "train", lambda runner: pytest.fail("training was started"))
    paths = {name: str(path) for name, path in bad.items()}
    options = [option.format(place=place, **paths) for option in options]
    if "--data-root" not in options:
        options += ["--data-root", str(place / "data")]
    if torch.cuda.is_available() and "GPU" in message:
        pytest.skip("there is a GPU")
    assert run(train, place / "plain.py", "--work-dir", tmp_path, *options) == 1
    error = capsys.readouterr().err
    assert re.search(f"^error: .*{message}", error, re.M), error
    assert "Traceback" not in error


def test_what_is_downloaded_is_checked_as_files_are(place, tmp_path, capsys, monkeypatch):
    """``init_cfg`` by a URL, and a URL that looks as if it lay in the work directory."""
    monkeypatch.setattr(Runner, "train", lambda runner: pytest.fail("training was started"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    torch.save(dict(state_dict={}, object=Path("x")), tmp_path / "pickled.pth")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/pickled.pth"
        part = "model.backbone.init_cfg"
        for options in ([f"{part}.type=Pretrained", f"{part}.checkpoint={url}"], [f"load_from={url}"]):
            options = ["--work-dir", ".", "--data-root", place / "data", "--cfg-options", *options]
            assert run(train, place / "plain.py", *options) == 1
            assert re.search(r"^error: .*pickled\.pth holds pickled.*--trust-checkpoint", capsys.readouterr().err, re.M)
        server.shutdown()


def test_garbage_is_collected_again_when_training_begins(place, tmp_path, monkeypatch):
    found = []

    def begin(runner):
        found.append(gc.isenabled())
        runner.call_hook("before_train")
        found.append(gc.isenabled())

    monkeypatch.setattr(Runner, "train", begin)
    options = ["--data-root", place / "data", "--work-dir", tmp_path]
    assert run(train, place / "plain.py", *options) == 0
    monkeypatch.setattr(Runner, "train", lambda runner: found.append(gc.isenabled()))
    assert run(train, place / "plain.py", *options) == 0
    assert found == [False, True, False]
    assert gc.isenabled()


def test_an_elastic_model_is_not_compiled():
    model = torch.nn.Linear(1, 1)
    model.elastic = ElasticSpace([])
    with pytest.raises(UserError, match="recompiled for every width"):
        check_training(Config(dict(compile=True)), model)


def test_an_elastic_model_is_not_trained_plainly(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Runner, "train", lambda runner: pytest.fail("training was started"))
    options = ["--data-root", place / "data", "--cfg-options", "optim_wrapper.type=OptimWrapper"]
    assert run(train, place / "netaug.py", "--work-dir", tmp_path, *options) == 1
    assert "error: the model is elastic, but optim_wrapper.type is OptimWrapper" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("{trained}/epoch_2.pth", "--trust-checkpoint"),
        ("{other}", "another network"),
        ("{backbone}", "another network: of the .* tensors of this one, .* are absent"),
        ("{large}", "All of them are larger: if it was trained with NetAug, use the \\*_tiny.pth beside it"),
    ],
)
def test_only_checkpoints_of_the_network_are_tested(place, trained, bad, tmp_path, capsys, checkpoint, message):
    full = torch.load(trained / "epoch_2.pth", weights_only=False)["state_dict"]
    torch.save(full, tmp_path / "large.pth")
    tiny = torch.load(trained / "epoch_2_tiny.pth")["state_dict"]
    torch.save({name: value for name, value in tiny.items() if "backbone" in name}, tmp_path / "backbone.pth")
    checkpoint = checkpoint.format(
        trained=trained, large=tmp_path / "large.pth", backbone=tmp_path / "backbone.pth", other=bad["other"]
    )
    assert run(test, place / "plain.py", checkpoint, "--data-root", place / "data", "--work-dir", tmp_path) == 1
    assert re.search(f"^error: .*{message}", capsys.readouterr().err, re.M)


@pytest.mark.slow
def test_a_checkpoint_of_other_classes_is_refused(place, trained, tmp_path, capsys):
    weights = torch.load(trained / "epoch_2_tiny.pth", weights_only=True)
    assert weights["meta"]["dataset_meta"]["classes"] == list(CLASSES)
    weights["meta"]["dataset_meta"]["classes"].reverse()
    torch.save(weights, tmp_path / "other.pth")
    options = ["--data-root", place / "data", "--work-dir", tmp_path]
    assert run(test, place / "plain.py", tmp_path / "other.pth", *options) == 1
    message = "another order: emu, dog, cat; the data have cat, dog, emu"
    assert message in capsys.readouterr().err
    with pytest.raises(UserError, match=message):
        load_tiny(Config.fromfile(place / "plain.py"), str(tmp_path / "other.pth"), classes=CLASSES)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("absent.py", [], "no config file at"),
        ("broken.py", [], "cannot be used: SyntaxError"),
        ("misspelt.py", [], "cannot be used: NameError.*dic"),
        ("plain.py", ["--cfg-options", "model.backbone.depth.deep=2"], "cannot be used"),
    ],
)
def test_broken_configs(place, capsys, config, options, message):
    (place / "broken.py").write_text("model = dict(")
    (place / "misspelt.py").write_text("model = dic()")
    assert run(describe, place / config, *options) == 1
    assert re.search(f"^error: .*{message}", capsys.readouterr().err, re.M)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train_cfg.max_epoch=3", "train_cfg.max_epoch is no option of EpochBasedTrainLoop: did you mean max_epochs?"),
        ("optim_wrapper.optimzer=1", "optim_wrapper.optimzer is no option of .*OptimWrapper: did you mean optimizer?"),
        ("optim_wrapper.optimizer.momentun=1", "optim_wrapper.optimizer.momentun is .* did you mean momentum?"),
        ("optim_wrapper.optimizer.lrr=1", "optim_wrapper.optimizer.lrr is no option of SGD, which has .*, lr, "),
        ("model.backbone.dept=18", "model.backbone.dept is no option of ResNet: did you mean depth?"),
        ("default_hooks.logger.intervall=1", "default_hooks.logger.intervall is .* did you mean interval?"),
        ("default_hooks.checkpoint.max_keep_ckpt=1", "default_hooks.checkpoint.* did you mean max_keep_ckpts?"),
        ("train_dataloader.batchsize=1", "train_dataloader.batchsize is .* did you mean batch_size?"),
        ("train_dataloader.dataset.filter_cf=1", r"dataset.filter_cf is .*VOCLayoutDataset: did you mean filter_cfg?"),
        ("train_dataloder.batch_size=1", "train_dataloder is no part of a config: did you mean train_dataloader?"),
    ],
)
def test_a_misspelt_option_is_one_line(place, capsys, option, message):
    assert run(describe, place / "plain.py", "--data-root", place / "data", "--cfg-options", option) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"error: .*{message[:-1]}.*", line)


def test_configs_have_no_misspelt_option():
    """Ours, and some of mmdet and mmpretrain with many parts."""
    stock = ["mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py", "mmdet::detr/detr_r50_8xb2-150e_coco.py"]
    stock += ["mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py", "mmpretrain::resnet/resnet50_8xb32_in1k.py"]
    configs = [Config.fromfile(path) for path in shipped_configs().values()]
    for cfg in configs + [Config.fromstring(f"_base_ = {name!r}", ".py") for name in stock]:
        check_names(cfg, SECTIONS)
        check_options(cfg)


def build(config: dict) -> torch.nn.Module:
    return MODELS.build(Config(dict(model=config)).model)


@pytest.mark.slow
def test_a_pretrained_backbone_must_be_complete():
    """ResNet-50 without its layer4.2 and the second half of layer3: a quarter of its tensors, and of no use."""
    model = build(dict(detector_config("resnet18"), backbone=dict(type="mmdet.ResNet", depth=50)))
    backbone = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    line = check_weights(model, backbone, "x.pth")
    assert line == "weights: from x.pth; neck, bbox_head start anew (absent from it)"
    holed = {n: v for n, v in backbone.items() if not re.search(r"layer4\.2|layer3\.[345]", n)}
    with pytest.raises(UserError, match=r"of this one, 60 are absent \(backbone.layer3.3.conv1.*--allow-partial"):
        check_weights(model, holed, "x.pth")
    assert "start anew (--allow-partial)" in check_weights(model, holed, "x.pth", partial=True)
    one = {name: value for name, value in backbone.items() if name != "backbone.layer2.0.bn1.running_var"}
    with pytest.raises(UserError, match=r"1 are absent \(backbone.layer2.0.bn1.running_var\)"):
        check_weights(model, one, "x.pth")
    counted = {name: value for name, value in backbone.items() if not name.endswith("num_batches_tracked")}
    assert check_weights(model, counted, "x.pth") == line
    # the first layers of a deeper network are no network
    deeper = build(dict(type="mmdet.ResNet", depth=101)).state_dict()
    with pytest.raises(UserError, match=r"255 lie between its layers .*backbone\.layer3\.6\.conv1"):
        check_weights(model, {f"backbone.{name}": value for name, value in deeper.items()}, "x.pth")
    with pytest.raises(UserError, match="another network"):  # nothing fits: that is no part of it
        check_weights(model, {"encoder.weight": torch.zeros(1)}, "x.pth", partial=True)


def test_a_backbone_may_end_before_its_checkpoint_and_part_of_a_model_may_be_named():
    short, whole = (build(dict(type="mmnetaug.TinyNet", arch="mcunet", out_indices=(i,))) for i in (3, -1))
    line = check_weights(short, whole.state_dict(), "x.pth")
    assert re.fullmatch(r"weights: from x.pth; stages\.4\..* of it left out", line)
    with pytest.raises(UserError, match="another network"):
        check_weights(whole, short.state_dict(), "x.pth")
    model = build(detector_config("resnet18"))
    weights = model.state_dict()
    with pytest.raises(UserError, match=r"set prefix='backbone.'"):
        check_weights(model.backbone, weights, "x.pth")
    assert check_weights(model.backbone, weights, "x.pth", prefix="backbone.") == "weights: from x.pth"


@pytest.mark.parametrize(
    ("config", "option", "last"),
    [
        (detector_config("resnet18"), "bbox_head", r"bbox_head\.\S+"),
        (
            dict(
                type="mmpretrain.ImageClassifier",
                data_preprocessor=dict(type="mmpretrain.ClsDataPreprocessor"),
                backbone=dict(type="mmpretrain.ResNet", depth=18),
                neck=dict(type="mmpretrain.GlobalAveragePooling"),
                head=dict(type="mmpretrain.LinearClsHead", num_classes=10, in_channels=512),
            ),
            "head",
            r"head\.fc\.weight, head\.fc\.bias",
        ),
    ],
    ids=["detector", "classifier"],
)
def test_last_layers_for_other_classes_start_anew(config, option, last):
    model = build(config)
    weights = build({**config, option: dict(config[option], num_classes=20)}).state_dict()
    line = check_weights(model, weights, "x.pth")
    assert re.fullmatch(rf"weights: from x.pth; {last}.* start anew \(another number of classes\)", line)
    with pytest.raises(UserError, match="have another shape"):
        check_weights(model, weights, "x.pth", complete=True)
    del weights[next(name for name in weights if name.startswith(option))]  # half a head is no head
    with pytest.raises(UserError, match=rf"1 are absent \({option}\."):
        check_weights(model, weights, "x.pth")


@pytest.mark.slow
def test_the_user_may_start_from_part_of_a_checkpoint(place, trained, tmp_path, capsys, monkeypatch):
    started = []
    monkeypatch.setattr(Runner, "train", lambda runner: started.append(runner))
    weights = torch.load(trained / "epoch_2_tiny.pth")["state_dict"]
    torch.save({name: value for name, value in weights.items() if "layer1.1" not in name}, tmp_path / "holed.pth")
    part = ["model.backbone.init_cfg.type=Pretrained", f"model.backbone.init_cfg.checkpoint={tmp_path / 'own.pth'}"]
    own = {n.removeprefix("backbone."): v for n, v in weights.items() if "backbone" in n and "layer1.1" not in n}
    torch.save(own, tmp_path / "own.pth")
    for number, options in enumerate(([f"load_from={tmp_path / 'holed.pth'}"], part)):
        args = ["--work-dir", tmp_path / str(number), "--data-root", place / "data", "--cfg-options", *options]
        assert run(train, place / "plain.py", *args) == 1
        assert re.search(r"^error: .*layer1\.1.*--allow-partial", capsys.readouterr().err, re.M)
        assert len(started) == number
        assert run(train, place / "plain.py", "--allow-partial", *args) == 0
        # of both runs: MMEngine names loggers by the second, so that quick runs may share the first one's file
        logs = "".join(log.read_text() for log in tmp_path.glob("*/*/*.log"))
        assert len(re.findall(r"layer1\.1.* start anew \(--allow-partial\)", logs)) == number + 1


def test_an_elastic_model_takes_the_weights_of_its_tiny_or_its_largest_network():
    elastic, plain = build_pair(detector_config("resnet18"))
    tiny, large = plain.state_dict(), elastic.state_dict()
    for weights in (tiny, large, dict(state_dict={f"module.{name}": value for name, value in tiny.items()})):
        assert check_weights(elastic, weights, "x.pth", complete=True) == "weights: from x.pth"
    # largest networks of other factors
    other = {name: torch.cat([value, value]) if value.dim() else value for name, value in large.items()}
    for weights in (other, {**large, **{name: tiny[name] for name in list(tiny)[:20]}}):
        with pytest.raises(UserError, match="another network"):
            check_weights(elastic, weights, "x.pth", complete=True)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(WriteError, match="No space left"), replaced_when_done(path) as temporary:
        temporary.write_text("ne")
        raise OSError(errno.ENOSPC, "no matter what")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("where", "message"), [("", "it is a folder"), ("plain.py/x.json", "plain.py")])
def test_results_that_cannot_be_written_are_told_before_the_work(place, capsys, monkeypatch, where, message):
    monkeypatch.setattr("mmnetaug.apis.describe.describe", lambda args, cfg: pytest.fail("the work was begun"))
    assert run(describe, place / "plain.py", "--json", place / where) == 1
    assert re.search(f"^error: .* cannot be written: .*{message}", capsys.readouterr().err)


def test_work_dir_is_named_after_the_config(place):
    parser = config_parser("")
    add_runner_arguments(parser)
    assert load_config(parser.parse_args([str(place / "plain.py")])).work_dir == "work_dirs/plain"
    args = parser.parse_args([str(place / "plain.py"), "--work-dir", "elsewhere"])
    assert load_config(args).work_dir == "elsewhere"


def test_any_default_hook_can_be_switched_off(place):
    options = ["--cfg-options", "default_hooks.channel_sort=None", "default_hooks.checkpoint=None"]
    parser = config_parser("")
    config = str(REPO / "configs/classification/imagenet/mobilenet_v2_tiny_netaug_in1k.py")
    hooks = load_config(parser.parse_args([config, *options])).default_hooks
    assert "channel_sort" not in hooks and "netaug_schedule" in hooks
    assert hooks["checkpoint"] is None  # which MMEngine's Runner knows how to leave out
