"""Prediction on images: what is written is what the network says, and what cannot be read is told."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from pycocotools.coco import COCO
from test_deploy import place  # noqa: F401  (a fixture)
from test_tiny_detectors import TFLITE
from test_tools import load_tool, run

from mmnetaug.apis import predict as predicting
from mmnetaug.apis.build import build_model
from mmnetaug.deploy.onnx import export_onnx
from mmnetaug.deploy.tflite import convert_tflite

pytestmark = pytest.mark.slow

predict, test = (load_tool(name) for name in ("predict", "test"))


def test_a_folder_with_a_corrupt_image(place, tmp_path, capsys):  # noqa: F811
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((place / "data").rglob("*.jpg"))[:2]:
        shutil.copy(path, photos)
    (photos / "bad.jpg").write_bytes(b"none")
    (photos / "empty.jpg").touch()
    args = [place / "plain.py", place / "tiny.pth", photos, "--data-root", place / "data"]
    args += ["--out-dir", tmp_path / "out"]
    assert run(predict, *args, "--score-thr", "0") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert [name in error for name, error in zip(("bad.jpg", "empty.jpg"), errors, strict=True)] == [True, True]
    coco = COCO(str(tmp_path / "out/predictions.json"))
    assert len(coco.imgs) == 2 and len(list((tmp_path / "out").glob("*.png"))) == 2
    model = init_detector(str(place / "plain.py"), str(place / "tiny.pth"), device="cpu")
    for key, image in coco.imgs.items():
        expected = inference_detector(model, image["file_name"]).pred_instances.bboxes.numpy()
        boxes = np.array([a["bbox"] for a in coco.imgToAnns[key]])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, expected, atol=1e-3)
        assert len(boxes)


def test_pictures_show_what_is_written(place, tmp_path):  # noqa: F811
    """Boxes that reach beyond the image do not shrink it, and one score decides for the picture and the files."""
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((120, 160, 3), (255, 0, 0), np.uint8))
    args = [place / "plain.py", place / "tiny.pth", tmp_path / "blue.png", "--data-root", place / "data"]
    args += ["--out-dir", tmp_path / "out"]
    assert run(predict, *args, "--score-thr", 0) == 0
    boxes = json.loads((tmp_path / "out/predictions.json").read_text())["annotations"]
    assert any(x + w > 160 for x, _, w, _ in (box["bbox"] for box in boxes))
    picture = cv2.imread(str(tmp_path / "out/000001_blue.png"))
    assert picture.shape == (120, 160, 3) and not (picture[:, -1] == 255).all(-1).any()
    assert run(predict, *args, "--score-thr", repr(max(box["score"] for box in boxes))) == 0
    assert json.loads((tmp_path / "out/predictions.json").read_text())["annotations"]
    assert (cv2.imread(str(tmp_path / "out/000001_blue.png")) != (255, 0, 0)).any()


def test_a_video_is_predicted_frame_by_frame(place, tmp_path, capsys):  # noqa: F811
    """Beside it a file that is no video; the frames are those that OpenCV decodes."""
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for shade in (0, 100, 200):
        writer.write(np.full((64, 96, 3), shade, np.uint8))
    writer.release()
    (tmp_path / "bad.mp4").write_bytes(b"none")
    args = [place / "plain.py", place / "tiny.pth", tmp_path, "--data-root", place / "data", "--score-thr", 0]
    assert run(predict, *args, "--out-dir", tmp_path / "out") == 1
    assert f"{tmp_path / 'bad.mp4'} cannot be read: it is no video" in capsys.readouterr().err
    coco = COCO(str(tmp_path / "out/predictions.json"))
    assert [image["file_name"][-10:] for image in coco.imgs.values()] == [f"film.avi#{i}" for i in range(3)]
    model = init_detector(str(place / "plain.py"), str(place / "tiny.pth"), device="cpu")
    film, drawn = (cv2.VideoCapture(str(tmp_path / path)) for path in ("film.avi", "out/000002_film.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and drawn.get(cv2.CAP_PROP_FPS) == 10
    for key in coco.imgs:
        frame, picture = film.read()[1], drawn.read()[1]
        expected = inference_detector(model, frame).pred_instances.scores.numpy()
        given = [annotation["score"] for annotation in coco.imgToAnns[key]]
        np.testing.assert_allclose(given, expected, atol=1e-5)
        assert picture.shape == frame.shape and np.abs(picture.astype(int) - frame).max() > 50  # boxes


def test_a_camera_is_read_until_it_ends_or_ctrl_c(place, tmp_path, monkeypatch):  # noqa: F811
    """A film takes the place of camera 0: all but the number is as with a camera."""
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for shade in (0, 100, 200):
        writer.write(np.full((64, 96, 3), shade, np.uint8))
    writer.release()
    real, infer, seen = cv2.VideoCapture, predicting.infer, []

    def stop_at_the_last(*args):
        seen.append(args)
        if len(seen) == 6:  # of the second run, the third
            raise KeyboardInterrupt
        return infer(*args)

    monkeypatch.setattr(cv2, "VideoCapture", lambda source: real(str(tmp_path / "film.avi") if source == 0 else source))
    monkeypatch.setattr(predicting, "infer", stop_at_the_last)
    monkeypatch.chdir(tmp_path)
    args = [place / "plain.py", place / "tiny.pth", 0, "--data-root", place / "data", "--out-dir", tmp_path / "out"]
    for frames in (3, 2):
        assert run(predict, *args) == 0
        images = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
        assert [image["file_name"] for image in images] == [f"0#{number}" for number in range(frames)]
        assert real(str(tmp_path / "out/000001_0.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == frames


def test_no_such_camera_is_one_error(place, tmp_path, capsys):  # noqa: F811
    args = [place / "plain.py", place / "tiny.pth", 97, "--data-root", place / "data", "--out-dir", tmp_path]
    assert run(predict, *args) == 1
    assert "error: 97 cannot be read: there is no such camera" in capsys.readouterr().err


def test_an_empty_folder_is_one_error(place, tmp_path, capsys):  # noqa: F811
    assert run(predict, place / "plain.py", place / "tiny.pth", tmp_path) == 1
    assert f"no file, glob or folder {tmp_path}" in capsys.readouterr().err


def test_classification(place, tmp_path):  # noqa: F811
    """The tool for tests reads the images by MMEngine's runner."""
    args = [place / "classifier.py", place / "classifier.pth"]
    assert run(test, *args, "--out", tmp_path / "expected.pkl", "--work-dir", tmp_path) == 0
    expected = {
        (Path(sample["img_path"]).resolve(), index): float(score)
        for sample in mmengine.load(tmp_path / "expected.pkl")
        for index, score in enumerate(sample["pred_score"])
    }
    assert run(predict, *args, place / "classes/val/**/*.[jp][pn]g", "--out-dir", tmp_path) == 0
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    classes = sorted(path.name for path in (place / "classes/val").iterdir())
    given = {(Path(row["file"]).resolve(), classes.index(row["class"])): float(row["score"]) for row in rows}
    assert given == pytest.approx(expected, abs=1e-5)
    assert json.loads((tmp_path / "predictions.json").read_text())[0]["class"] == rows[0]["class"]
    assert all(cv2.imread(str(path)) is not None for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == len(rows) / 2


@pytest.mark.parametrize(
    "suffix",
    ["onnx", pytest.param("tflite", marks=pytest.mark.skipif(TFLITE is None, reason="TFLITE_PYTHON is not set"))],
)
def test_an_exported_file_predicts_what_its_checkpoint_does(place, tmp_path, suffix):  # noqa: F811
    config = Config.fromfile(place / "plain.py")
    model = build_model(config).eval()
    model.load_state_dict(torch.load(place / "tiny.pth", weights_only=True)["state_dict"])
    for layer in model.bbox_head.convs_pred:
        layer.weight.data *= 100  # else scores are nearly equal, and rounding decides on their order
    torch.save({"state_dict": model.state_dict()}, tmp_path / "tiny.pth")
    exported = tmp_path / f"tiny.{suffix}"
    if suffix == "onnx":
        export_onnx(model, (1, 3, 64, 64), exported)
    else:
        images = [torch.rand(1, 3, 64, 64).numpy()]
        convert_tflite(TFLITE, model, (1, 3, 64, 64), images, exported, tmp_path / "int8.tflite")
    image = next((place / "data").rglob("*.jpg"))
    for name in ("tiny.pth", exported.name):
        args = [place / "plain.py", tmp_path / name, image, "--data-root", place / "data", "--score-thr", "0"]
        args += ["--tflite-python", TFLITE] if suffix == "tflite" else []
        assert run(predict, *args, "--out-dir", tmp_path / name[4:]) == 0
    one, two = (
        json.loads((tmp_path / kind / "predictions.json").read_text())["annotations"] for kind in (".pth", f".{suffix}")
    )
    assert one
    for a, b in zip(one, two, strict=True):
        assert a["category_id"] == b["category_id"]
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-2) and a["score"] == pytest.approx(b["score"], abs=1e-4)


def test_a_tflite_file_needs_litert(place, tmp_path, monkeypatch, capsys):  # noqa: F811
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name != "ai_edge_litert" else None)
    (tmp_path / "tiny.tflite").touch()
    args = [place / "plain.py", tmp_path / "tiny.tflite", 0, "--data-root", place / "data"]
    assert run(predict, *args) == 1
    assert "LiteRT, which is not installed here: see --tflite-python" in capsys.readouterr().err
