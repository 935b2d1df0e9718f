"""Sweeps, exports and pictures on drawn data: what comes out is what went in, and what cannot be done is said."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
import sys
from pathlib import Path

import cv2
import mmdet
import numpy as np
import pytest
import torch
from data_fixtures import make_class_folders, make_voc_folder
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmdet.apis import inference_detector, init_detector
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS
from networks import detector_config
from test_tiny_detectors import TFLITE
from test_tools import CLASSES, CLASSIFIER, DETECTOR, NETAUG, REPO, load_tool, run
from torch import Tensor, nn

from mmnetaug.analysis.memory import peak_memory
from mmnetaug.analysis.operators import record
from mmnetaug.apis import export as exporting
from mmnetaug.apis import sweep as sweeping
from mmnetaug.apis.build import build_model
from mmnetaug.apis.compare import CELL
from mmnetaug.apis.evaluation import calibration_images, head_of, headline, load_tiny, replace_network
from mmnetaug.apis.input_size import fix_input, set_input_size
from mmnetaug.config import without_netaug
from mmnetaug.deploy import latency
from mmnetaug.deploy import onnx as deploy_onnx
from mmnetaug.deploy.tflite import LeakyMaximum, TFLiteNetwork
from mmnetaug.errors import UserError

pytestmark = pytest.mark.slow

sweep, export, test, compare, train = (load_tool(name) for name in ("sweep", "export", "test", "compare", "train"))


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Configs of a detector and a classifier with and without NetAug, their data, and weights."""
    place = tmp_path_factory.mktemp("deploy")
    make_voc_folder(place / "data", dict(train=4, val=4), CLASSES)
    make_class_folders(place / "classes")
    detector = DETECTOR.format(repo=REPO, model=detector_config("resnet18"))
    (place / "plain.py").write_text(detector)
    (place / "netaug.py").write_text(NETAUG.format(plain=place / "plain.py"))
    (place / "classifier.py").write_text(CLASSIFIER.format(data=place / "classes"))
    for name, config in dict(tiny="plain", large="netaug", classifier="classifier").items():
        torch.manual_seed(0)
        model = build_model(Config.fromfile(place / f"{config}.py"))
        model.init_weights()
        torch.save({"state_dict": model.state_dict()}, place / f"{name}.pth")
    return place


# --- sweep ------------------------------------------------------------------------------------------------------------


def test_sweep_measures_writes_and_keeps(place, tmp_path, capsys, monkeypatch):
    pairs = [["--model", name, place / "plain.py", place / "tiny.pth"] for name in ("one", "other")]
    data = shutil.copytree(place / "data", tmp_path / "data")
    args = [*pairs[0], *pairs[1], "--data-root", data, "--work-dir", tmp_path / "sweep"]
    assert run(sweep, *args, "--sizes", 64, 96) == 0
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [(p["network"], p["size"]) for p in figures["points"]] == [
        ("one", 64), ("one", 96), ("other", 64), ("other", 96)
    ]  # fmt: skip
    assert figures["points"][1]["macs"] == pytest.approx(figures["points"][0]["macs"] * 2.25)
    assert all(p["latency_ms"] > 0 and p["peak_memory"] > 0 for p in figures["points"])
    assert all(p["onnx_ms"] > 0 and p["onnx_int8_ms"] > 0 for p in figures["points"])
    # the same weights: nothing is saved, and the second network's points need no measuring
    assert figures["macs_saved"]["other"]["largest"] == 0
    assert "saves no MACs" in out and out.count("(kept)") == 2
    assert len((tmp_path / "sweep/sweep.csv").read_text().splitlines()) == 5
    assert cv2.imread(str(tmp_path / "sweep/sweep.png")) is not None

    monkeypatch.setattr(sweeping, "measure", lambda *args: pytest.fail("measured again"))
    assert run(sweep, *args, "--sizes", 64, 96) == 0
    last = max((data / "Annotations").glob("*.xml"))  # a test image's
    last.write_text(re.sub("<name>.*</name>", "<name>cat</name>", last.read_text()))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(sweep, *args, "--sizes", 64, 96)


@pytest.mark.parametrize(
    "tflite_python",
    [None, pytest.param(TFLITE, marks=pytest.mark.skipif(TFLITE is None, reason="TFLITE_PYTHON is not set"))],
)
def test_latency_is_measured_in_every_runtime_that_can_run_the_network(tflite_python, capsys, monkeypatch):
    """Those that take turns are the network itself: same outputs, int8 ones nearly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    outputs = {}

    def run_each_once(runs):
        outputs.update({name: run()[0][0] for name, run in runs.items()})
        return medians(runs)

    medians = latency._medians
    monkeypatch.setattr(latency, "SECONDS", 0)
    monkeypatch.setattr(latency, "_medians", run_each_once)
    threads = torch.get_num_threads()
    measured = latency.measure_latency(model, (1, 3, 16, 16), tflite_python)
    assert list(measured) == list(outputs) == list(latency.RUNTIMES)[: 5 if tflite_python else 3]
    assert all(milliseconds > 0 for milliseconds in measured.values())
    assert torch.get_num_threads() == threads
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32))
    expected = model(image).detach().numpy()
    assert np.allclose(outputs["latency_ms"], expected, atol=1e-5)
    for runtime in ("onnx", "litert") if tflite_python else ("onnx",):
        assert np.allclose(outputs[f"{runtime}_ms"], expected, atol=1e-5)
        difference = np.abs(outputs[f"{runtime}_int8_ms"] - expected).max() / np.abs(expected).max()
        assert 1e-5 < difference < 0.1

    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    assert latency.measure_latency(model, (1, 3, 16, 16)).keys() == {"latency_ms"}
    assert "ONNX needs onnxruntime" in capsys.readouterr().err


def test_classifiers_and_large_checkpoints_sweep(place, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "measure_latency", lambda *args: dict(latency_ms=1.0))  # measured for seconds
    model = ["--model", "large", place / "classifier.py", place / "classifier.pth"]
    assert run(sweep, *model, "--work-dir", tmp_path, "--sizes", 64, 50) == 0
    figures = json.loads((tmp_path / "sweep.json").read_text())
    assert figures["metric"] == "top-1" and [p["size"] for p in figures["points"]] == [50, 64]
    assert all(0 <= p["accuracy"] <= 1 for p in figures["points"])


def test_sweep_can_train_at_each_size(place, tmp_path, monkeypatch, capsys):
    # in this process: imports take longer than the training
    launched = []
    monkeypatch.setattr(sweeping, "measure_latency", lambda *args: dict(latency_ms=1.0))
    monkeypatch.setattr(sweeping, "launch", lambda command: launched.append(0) or load_tool("train").main(command[2:]))
    args = ["--model", "net", place / "netaug.py", "--train", "--sizes", 64, "--work-dir", tmp_path]
    args += ["--data-root", place / "data", "--cfg-options"]
    for _ in range(2):  # the second time it is all there
        assert run(sweep, *args, "train_cfg.max_epochs=1") == 0
    assert launched == [0]
    assert (tmp_path / "net/64/epoch_1_tiny.pth").is_file()
    assert len(json.loads((tmp_path / "sweep.json").read_text())["points"]) == 1
    assert run(sweep, *args, "train_cfg.max_epochs=2") == 1
    assert "holds a training by another config" in capsys.readouterr().err
    (tmp_path / "net/64/last_checkpoint").write_text("/where/it/was/epoch_1.pth")
    assert run(sweep, *args, "train_cfg.max_epochs=1") == 0
    monkeypatch.setattr(sweeping, "launch", lambda command: 0)  # a training that leaves nothing behind
    args[args.index(tmp_path)] = tmp_path / "other"
    assert run(sweep, *args, "train_cfg.max_epochs=1") == 1
    assert "left no checkpoint" in capsys.readouterr().err


def test_sizes_are_set_everywhere():
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        dict(type="ResizeEdge", scale=256),
        dict(type="CenterCrop", crop_size=224),
        dict(type="PackInputs"),
    ]
    resize = [dict(type="mmdet.Resize", scale=(416, 320)), dict(type="PackDetInputs")]  # with 224 at the test
    augment = dict(type="BatchSyncRandomResize", random_size_range=(320, 608))
    cfg = Config(
        dict(
            model=dict(data_preprocessor=dict(pad_size_divisor=32, batch_augments=[augment])),
            train_dataloader=dict(dataset=dict(type="RepeatDataset", dataset=dict(pipeline=resize))),
            test_dataloader=dict(dataset=dict(pipeline=pipeline)),
        )
    )
    set_input_size(cfg, 160, ("test", "train"))
    kinds = [step.type for step in cfg.test_dataloader.dataset.pipeline]
    assert kinds == ["LoadImageFromFile", "ResizeEdge", "CenterCrop", "LoadAnnotations", "PackInputs"]
    assert cfg.test_dataloader.dataset.pipeline[1].scale == round(256 * 160 / 224)
    assert cfg.test_dataloader.dataset.pipeline[2].crop_size == 160
    assert cfg.train_dataloader.dataset.dataset.pipeline[0].scale == (round(416 * 160 / 224), round(320 * 160 / 224))
    assert cfg.model.data_preprocessor.batch_augments[0].random_size_range == (224, 448)
    cfg.model.data_preprocessor.batch_augments = []
    set_input_size(cfg, 192, ("train",))
    assert cfg.train_dataloader.dataset.dataset.pipeline[0].scale == (192, 192)
    for wrapper in ("", "mmnetaug.SamePadding", "mmnetaug.NetAug"):
        wrapped = Config(dict(cfg, model=dict(type=wrapper, model=cfg.model) if wrapper else cfg.model))
        with pytest.raises(UserError, match=r"150 is not a multiple of 32.*take 128 or 160"):
            set_input_size(wrapped, 150)
    for pipeline, fits in (
        ([dict(type="RandomCrop", crop_size=32), dict(type="Resize", scale=64)], True),
        ([dict(type="RandomResizedCrop", scale=64)], True),
        (
            [dict(type="Resize", scale=64), dict(type="RandomCrop", crop_size=(64, 64)), dict(type="Pad", size=64)],
            False,
        ),
    ):
        other = Config(dict(model=dict(), train_dataloader=dict(dataset=dict(pipeline=pipeline))))
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(UserError, match="RandomCrop of the pipeline sets a size")
        ):
            set_input_size(other, 96, ("train",))


def test_the_size_that_a_config_has_changes_nothing():
    """Multi-scale training: images of 608 pixels are shrunk to 320..608 as a batch, and tested at 416."""
    cfg = Config.fromfile(REPO / "configs/yolov3_mbv3_w035_netaug_voc.py")
    before = cfg.pretty_text
    set_input_size(cfg, 416, ("train", "val", "test"))
    assert cfg.pretty_text == before


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def exported(place) -> dict:
    """The large checkpoint of a NetAug config, exported."""
    args = ["--data-root", place / "data", "--out", place / "out", "--json", place / "figures.json"]
    assert run(export, place / "netaug.py", place / "large.pth", *args, "--max-drop", 1) == 0
    return json.loads((place / "figures.json").read_text())


def test_exports_compute_what_pytorch_does(place, exported):
    assert {Path(file).name for file in exported["files"]} == {
        "large_tiny.pth", "large_tiny.py", "large_tiny.onnx", "large_tiny_int8.onnx"
    }  # fmt: skip
    assert {path.name for path in (place / "out").iterdir() if path.is_file()} == {
        Path(file).name for file in exported["files"]
    }
    assert exported["ONNX fp32 output error"] < 1e-3
    assert exported["ONNX fp32 AP50"] == pytest.approx(exported["PyTorch AP50"], abs=5e-4)
    assert "ONNX int8 AP50" in exported


def test_the_stock_checkpoint_is_the_tiny_network(place, exported):
    state = torch.load(place / "out/large_tiny.pth", weights_only=True)["state_dict"]
    plain = Config.fromfile(place / "plain.py")
    build_model(plain).load_state_dict(state, strict=True)
    _, expected = load_tiny(Config.fromfile(place / "netaug.py"), str(place / "large.pth"))
    assert all(state[name].equal(value) for name, value in expected.items())
    model = init_detector(str(place / "out/large_tiny.py"), str(place / "out/large_tiny.pth"), device="cpu")
    assert list(model.dataset_meta["classes"]) == list(CLASSES)
    assert 0 < len(inference_detector(model, np.zeros((64, 64, 3), np.uint8)).pred_instances) <= 20


def test_training_goes_on_from_an_export(place, tmp_path):
    (tmp_path / "hooks.py").write_text(
        (place / "netaug.py").read_text()
        + """
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper", alpha=0.5, interval=2)
optim_wrapper.update(distill=dict(weight=0.5), normalize=True)
default_hooks = dict(netaug_schedule=dict(type="mmnetaug.NetAugScheduleHook", width_until=0.5), visualization=None)
custom_hooks = [dict(type="mmnetaug.ChannelSortHook"), dict(type="EMAHook")]
"""
    )
    args = ["--data-root", place / "data", "--out", tmp_path, "--to", "stock"]
    assert run(export, tmp_path / "hooks.py", place / "large.pth", *args) == 0
    cfg = Config.fromfile(tmp_path / "large_tiny.py")
    assert cfg.optim_wrapper == Config.fromfile(place / "plain.py").optim_wrapper
    assert cfg.custom_hooks == [dict(type="EMAHook")]
    args = ["--work-dir", tmp_path / "work", "--cfg-options", f"load_from={tmp_path / 'large_tiny.pth'}"]
    assert run(train, tmp_path / "large_tiny.py", *args) == 0
    assert (tmp_path / "work/epoch_2.pth").is_file()


def test_onnx_takes_any_batch(place, exported):
    model = build_model(Config.fromfile(place / "plain.py")).eval()
    model.load_state_dict(torch.load(place / "out/large_tiny.pth", weights_only=True)["state_dict"])
    network = deploy_onnx.OnnxNetwork(place / "out/large_tiny.onnx")
    for images in (1, 3):
        x = torch.rand(images, 3, 64, 64)
        with torch.no_grad():
            expected = deploy_onnx.Raw(model)(x)
        for a, b in zip(expected, network(x.numpy()), strict=True):
            assert np.allclose(a, b, atol=1e-4)


@pytest.mark.skipif(TFLITE is None, reason="TFLITE_PYTHON is not set")
def test_tflite_is_verified_as_microcontrollers_compute_it(place, tmp_path):
    args = ["--data-root", place / "data", "--out", tmp_path, "--json", tmp_path / "figures.json", "--max-drop", 1]
    args += ["--to", "tflite", "--tflite-python", TFLITE]
    assert run(export, place / "plain.py", place / "tiny.pth", *args) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [Path(file).name for file in figures["files"]] == ["tiny_tiny.tflite", "tiny_tiny_int8.tflite"]
    assert figures["TFLite fp32 AP50"] == pytest.approx(figures["PyTorch AP50"], abs=5e-4)
    assert "TFLite int8 AP50" in figures
    assert figures["arena"] is None or figures["arena"]["largest_difference"] == 0
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    outputs = []
    for reference in (False, True):  # LiteRT's kernels round in two ways
        with TFLiteNetwork(TFLITE, tmp_path / "tiny_tiny_int8.tflite", reference) as network:
            outputs.append(np.concatenate([output.ravel() for output in network(image)]))
    assert np.abs(outputs[0] - outputs[1]).max() > 0


def test_int8_is_int8(place, exported):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(place / "out/large_tiny_int8.onnx").graph
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    convolutions = sum(node.op_type == "Conv" for node in graph.node)
    assert sum(name.endswith("_quantized") and "zero" not in name for name in weights) == convolutions - 3  # outputs


def test_the_test_tool_measures_onnx(place, exported, tmp_path, capsys):
    args = ["--data-root", place / "data", "--work-dir", tmp_path, "--json", "-"]
    assert run(test, place / "netaug.py", place / "out/large_tiny.onnx", *args) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["metrics"]["pascal_voc/mAP"] == pytest.approx(exported["PyTorch AP50"], abs=5e-4)


def test_raw_outputs_are_decoded_as_the_network_s_own(place):
    """The network is untrained, so its AP50 says little: the boxes must be the same to the bit."""
    model, other = (build_model(Config.fromfile(place / "plain.py")).eval() for _ in range(2))
    other.load_state_dict(model.state_dict())
    raw = deploy_onnx.Raw(model)
    with torch.no_grad():
        replace_network(other, lambda images: [x.numpy() for x in raw(torch.from_numpy(images))], (64, 64))
        sample = DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0)))
        image = torch.randint(0, 255, (3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        batch = dict(inputs=[image], data_samples=[sample])
        [one], [two] = (net.test_step(copy.deepcopy(batch)) for net in (model, other))
    assert len(one.pred_instances) >= 10
    for key in ("bboxes", "scores", "labels"):
        assert torch.equal(one.pred_instances[key], two.pred_instances[key])


def test_classifiers_export_at_another_size(place, tmp_path):
    args = ["--out", tmp_path, "--size", 32, "--to", "onnx", "--json", tmp_path / "figures.json"]
    assert run(export, place / "classifier.py", place / "classifier.pth", *args) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["input_shape"] == [1, 3, 32, 32]
    assert figures["ONNX fp32 top-1"] == figures["PyTorch top-1"]


def test_classifiers_export_at_the_size_of_their_images(place, tmp_path):
    config = (place / "classifier.py").read_text()
    (tmp_path / "as_they_are.py").write_text(config.replace('dict(type="Resize", scale=64), ', ""))
    args = [tmp_path / "as_they_are.py", place / "classifier.pth", "--out", tmp_path, "--to", "onnx"]
    assert run(export, *args, "--json", tmp_path / "figures.json") == 0
    assert json.loads((tmp_path / "figures.json").read_text())["input_shape"] == [1, 3, 64, 64]
    args = [tmp_path / "as_they_are.py", tmp_path / "classifier_tiny.onnx", "--work-dir", tmp_path / "work"]
    assert run(test, *args) == 0


def test_an_int8_network_that_lost_too_much_is_not_kept(place, tmp_path, capsys, monkeypatch):
    for writer in ("export_onnx", "quantize_onnx"):
        monkeypatch.setattr(exporting, writer, lambda *args: args[-1].write_bytes(b"a network"))
    monkeypatch.setattr(exporting, "OnnxNetwork", lambda *args: None)
    monkeypatch.setattr(exporting.Verifier, "_measure", lambda *args: 0.5)
    monkeypatch.setattr(exporting.Verifier, "exact", lambda verifier, *args: setattr(verifier, "reference", 0.6))
    args = ["--out", tmp_path, "--to", "int8", "--data-root", place / "data", "--calibration-images", 1]
    assert run(export, place / "plain.py", place / "tiny.pth", *args) == 1
    assert "loses 0.1000 of" in capsys.readouterr().err
    assert not list(tmp_path.glob("*int8*"))


def test_calibration_images_are_the_training_images_without_their_wrappers(place):
    cfg = Config.fromfile(place / "classifier.py")
    train = cfg.train_dataloader.dataset
    repeated = dict(type="RepeatDataset", times=5, dataset=train)
    nested = dict(type="ConcatDataset", datasets=[repeated, dict(type="ConcatDataset", datasets=[train])])
    model = build_model(cfg)
    images = list(calibration_images(cfg, model, 1000, (64, 64)))
    cfg.train_dataloader.dataset = nested
    both = list(calibration_images(cfg, model, 1000, (64, 64)))
    assert len(both) == 2 * len(images) > 0
    assert all(np.array_equal(one, two) for one, two in zip(both, 2 * images, strict=True))


def test_only_known_metrics_are_compared():
    assert headline({"coco/bbox_mAP_50": 0.25, "coco/bbox_mAP": 0.1}) == ("AP50", 0.25)
    assert headline({"pascal_voc/AP50": 0.123, "pascal_voc/mAP": 0.1234}) == ("AP50", 0.1234)
    assert headline({"accuracy/top1": 51.7}) == ("top-1", pytest.approx(0.517))
    with pytest.raises(UserError, match="none of the metrics lvis/bbox_mAP"):
        headline({"lvis/bbox_mAP": 0.1})


def test_leaky_relu_is_a_maximum():
    x = torch.randn(100)
    assert LeakyMaximum(0.1)(x).equal(nn.functional.leaky_relu(x, 0.1))


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_images_larger_than_a_fixed_input_are_told_with_the_way_out(place):
    model = build_model(Config.fromfile(place / "plain.py"))
    fix_input(model, (64, 96))  # of a pipeline that keeps the aspect ratio
    portrait = dict(inputs=[torch.zeros(3, 96, 64, dtype=torch.uint8)], data_samples=[DetDataSample()])
    with pytest.raises(UserError, match=r"96x64, larger than the input, 64x96: --size N"):
        model.data_preprocessor(portrait, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{classifier}"], "another network"),
        (["{tiny}", "--size", "70", "--cfg-options", "model.data_preprocessor.pad_size_divisor=32"], "take 64 or 96"),
        (["{tiny}", "--to", "tflite"], "needs --tflite-python"),
        (["{tiny}", "--to", "tflite", "--tflite-python", "/absent"], "no interpreter at /absent"),
    ],
)
def test_exports_stop_with_one_error(place, tmp_path, capsys, options, message):
    options = [option.format(classifier=place / "classifier.pth", tiny=place / "tiny.pth") for option in options]
    assert run(export, place / "plain.py", *options, "--data-root", place / "data", "--out", tmp_path) == 1
    error = capsys.readouterr().err
    assert re.search(f"^error: .*({message})", error, re.M), error
    assert not list(tmp_path.glob("*int8*"))


def test_int8_needs_training_images(place, tmp_path, capsys):
    shutil.copytree(place / "data", tmp_path / "data")
    (tmp_path / "data/ImageSets/Main/train.txt").write_text("")
    args = ["--data-root", tmp_path / "data", "--out", tmp_path / "out"]
    assert run(export, place / "plain.py", place / "tiny.pth", *args) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") or "\nerror: " in error
    assert "Traceback" not in error and not list(tmp_path.glob("out/*int8*"))


def test_two_stage_detectors_are_not_exported():
    cfg = Config.fromfile(f"{Path(mmdet.__file__).parent}/.mim/configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
    with pytest.raises(UserError, match="neither a classifier nor a single-stage detector"):
        head_of(build_model(cfg))


class Unsupported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    with pytest.raises(UserError, match=r"Unsupported cannot be exported to ONNX: .*bessel_j0"):
        deploy_onnx.export_onnx(Unsupported(), (1, 3, 8, 8), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "a", "{plain}", "--sizes", "64"], "LABEL CONFIG CHECKPOINT"),
        (["--model", "a", "{plain}", "{other}", "--sizes", "64"], "another network"),
        (
            ["--model", "a", "{plain}", "{tiny}", "--model", "a", "{plain}", "{tiny}", "--sizes", "64"],
            "a different label",
        ),
    ],
)
def test_sweeps_stop_with_one_error(place, tmp_path, capsys, options, message):
    names = dict(plain=place / "plain.py", tiny=place / "tiny.pth", other=place / "classifier.pth")
    options = [option.format(**names) for option in options]
    assert run(sweep, *options, "--work-dir", tmp_path, "--data-root", place / "data") == 1
    assert re.search(f"^error: .*({message})", capsys.readouterr().err, re.M)


@pytest.mark.parametrize(("name", "content"), [("absent.onnx", None), ("broken.onnx", b"\0broken")])
def test_onnx_files_that_are_none(place, tmp_path, capsys, name, content):
    if content:
        (tmp_path / name).write_bytes(content)
    args = ["--data-root", place / "data", "--work-dir", tmp_path]
    assert run(test, place / "plain.py", tmp_path / name, *args) == 1
    assert re.search("^error: .*(no file at|no ONNX file)", capsys.readouterr().err, re.M)


def test_an_onnx_file_for_another_size(place, exported, tmp_path, capsys):
    args = ["--data-root", place / "data", "--work-dir", tmp_path]
    options = ["--cfg-options", "test_dataloader.dataset.pipeline.1.scale=(96,96)"]
    assert run(test, place / "plain.py", place / "out/large_tiny.onnx", *args, *options) == 1
    assert "takes images of 3x64x64" in capsys.readouterr().err


# --- pictures and padding ---------------------------------------------------------------------------------------------


def test_pictures_side_by_side(place, tmp_path, capsys):
    model = ["--model", "tiny", place / "plain.py", place / "tiny.pth"]
    args = [*model, "--data-root", place / "data", "--images", 0, 2, "--out", tmp_path / "x.jpg"]
    assert run(compare, *args) == 0
    height, width, _ = cv2.imread(str(tmp_path / "x.jpg")).shape
    assert width == 2 * (CELL + 4) and height == 2 * (240 + 24 + 4)
    assert run(compare, *args[:-3], 9, *args[-2:]) == 1
    assert "--images go from 0 to 3" in capsys.readouterr().err
    args = ["--model", "tiny", REPO / "configs/yolov3_mbv3_w035_voc.py", place / "tiny.pth", *args[4:]]
    assert run(compare, *args) == 1
    assert "Pascal VOC 2007 and 2012 come from" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (9, 3, 2), (8, 5, 2), (10, 7, 3), (7, 3, 1)])
def test_same_padding_is_tensorflows(size, kernel, stride):
    conv = Conv2dAdaptivePadding(2, 4, kernel, stride)
    x = torch.rand(1, 2, size, size)
    out = conv(x)
    assert out.shape[2:] == (-(-size // stride),) * 2
    total = max((out.shape[2] - 1) * stride + kernel - size, 0)
    canvas = torch.zeros(1, 2, size + total, size + total)
    canvas[..., total // 2 : total // 2 + size, total // 2 : total // 2 + size] = x
    assert torch.allclose(out, nn.functional.conv2d(canvas, conv.weight, conv.bias, stride))


def test_same_padding_changes_no_parameter_and_spares_the_padded_copies():
    backbone = dict(type="mmnetaug.TinyNet", arch="mobilenet_v2_tiny", out_indices=(3,))
    same = dict(type="mmnetaug.SamePadding", model=backbone)
    plain, padded = (MODELS.build(Config(dict(model=config)).model) for config in (backbone, same))
    assert list(plain.state_dict()) == list(padded.state_dict())
    assert sum(isinstance(module, Conv2dAdaptivePadding) for module in padded.modules()) == 4
    sizes = [peak_memory(record(model, (1, 3, 64, 64))) for model in (plain, padded)]
    assert sizes[1].bytes < sizes[0].bytes and sizes[0].kind == "pad" and sizes[1].kind != "pad"


def test_same_padding_loads_by_mmdets_own_function(place):
    cfg = Config.fromfile(place / "plain.py")
    cfg.model = dict(type="mmnetaug.SamePadding", model=cfg.model)
    model = init_detector(cfg, None, palette="voc", device="cpu", cfg_options={})
    assert any(isinstance(module, Conv2dAdaptivePadding) for module in model.modules())


def test_same_padding_inside_netaug():
    backbone = dict(type="mmnetaug.TinyNet", arch="mobilenet_v2_tiny", out_indices=(3,))
    same = dict(type="mmnetaug.SamePadding", model=backbone)
    elastic = MODELS.build(
        Config(dict(model=dict(type="mmnetaug.NetAug", model=same, width=[1, 2], expand=[1, 2]))).model
    )
    assert any(len(group.widths) > 1 for group in elastic.elastic.groups)
    assert elastic.eval()(torch.rand(1, 3, 64, 64))[0].shape == (1, 24, 4, 4)


def test_netaug_is_taken_off_wherever_it_is():
    inner = dict(type="ResNet", depth=18)
    config = dict(type="X", backbone=dict(type="mmnetaug.NetAug", model=inner, width=[1, 2]), heads=[dict(type="Y")])
    assert without_netaug(config) == dict(type="X", backbone=inner, heads=[dict(type="Y")])
