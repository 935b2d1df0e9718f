"""``docs/quick_start.ipynb`` runs from top to bottom, and leaves behind what it promises."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import cv2
import nbformat
import onnx
import pytest
import torch
from nbclient import NotebookClient

REPO = Path(__file__).parents[1]
FEW = "SCENES = {'train': 16, 'test': 4}\n%env EPOCHS=1"  # as someone in a hurry would edit it; nothing is learnt


@pytest.mark.slow
def test_quick_start_runs_from_top_to_bottom(tmp_path, monkeypatch):
    notebook = nbformat.read(REPO / "docs/quick_start.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), "stored with outputs"
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source = FEW
    # an activated environment with this mmnetaug installed
    command = tmp_path / "bin/mmnetaug"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mmnetaug "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(command.parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder = tmp_path / "empty"
    folder.mkdir()
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(folder)}}).execute()

    tiny = torch.load(folder / "run/epoch_1_tiny.pth", weights_only=True)["state_dict"]
    exported = torch.load(folder / "export/epoch_1_tiny.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(exported[name], value) for name, value in tiny.items())
    onnx.checker.check_model(str(folder / "export/epoch_1_tiny.onnx"))
    assert cv2.imread(str(folder / "predictions/000001_test_00000.png")).shape[:2] == (160, 160)
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert 0 <= metrics["pascal_voc/mAP"] <= 1
    with open(folder / "predictions/predictions.csv", newline="") as file:
        assert next(csv.reader(file)) == ["file", "class", "score", "x", "y", "width", "height"]
    shown = [kind for cell in notebook.cells for out in cell.get("outputs", ()) for kind in out.get("data", {})]
    assert [kind for kind in shown if kind.startswith("image/")] == ["image/jpeg", "image/png"]
