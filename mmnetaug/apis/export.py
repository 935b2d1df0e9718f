"""The work of ``tools/export.py``: writes the tiny network of a checkpoint in several formats, and verifies each."""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from mmnetaug.checkpoint import read_checkpoint
from mmnetaug.datasets import check_data, fill_config
from mmnetaug.deploy.onnx import OnnxNetwork, Raw, export_onnx, quantize_onnx
from mmnetaug.deploy.tflite import TFLiteNetwork, arena_size, convert_tflite
from mmnetaug.errors import UserError
from mmnetaug.files import replaced_when_done

from .evaluation import RawOutputs, build_tiny, calibration_images, evaluate, head_of, load_tiny
from .input_size import set_input_size, shape_of_images
from .load import require_test_data

ROUNDING = 1e-3  # of the largest output: tolerance for other float32 kernels
SAME = 0.0005  # AP50 or top-1 to three decimals


def export(args: argparse.Namespace, cfg: Config) -> dict[str, Any]:
    """Writes and verifies each format; returns the figures."""
    if "tflite" in args.to and not args.tflite_python:
        raise UserError("--to tflite needs --tflite-python, see docs/deploy.md")
    require_test_data(cfg, args.config)
    fill_config(cfg, args.data_root)
    if args.size is not None:
        set_input_size(cfg, args.size)
    reports = check_data(cfg, ("test", "train") if {"int8", "tflite"} & set(args.to) else ("test",))
    plain, state = load_tiny(cfg, args.checkpoint, args.trust_checkpoint, reports[0].classes)
    model = build_tiny(plain, state)
    head_of(model)  # rejects models that cannot be exported
    shape = shape_of_images(plain, model)
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / "export"
    stem = f"{Path(args.checkpoint).stem.removesuffix('_tiny')}_tiny"

    verifier = Verifier(plain, state, model, shape, out, args.max_drop)
    formats = set(args.to) | ({"onnx"} if "int8" in args.to else set())
    images = None
    if formats & {"int8", "tflite"}:
        images = list(calibration_images(plain, model, args.calibration_images, shape[2:]))
    if "stock" in formats:
        with replaced_when_done(out / f"{stem}.pth") as temporary:
            save_stock(model, plain, temporary)
            verifier.stock(temporary)
        verifier.written(out / f"{stem}.pth")
        with replaced_when_done(out / f"{stem}.py") as temporary:
            temporary.write_text(plain.pretty_text)
        verifier.written(out / f"{stem}.py")
    if "onnx" in formats:
        with replaced_when_done(out / f"{stem}.onnx") as temporary:
            export_onnx(model, shape, temporary)
            verifier.exact("ONNX fp32", OnnxNetwork(temporary, shape))
        verifier.written(out / f"{stem}.onnx")
    if "int8" in formats:
        target = out / f"{stem}_int8.onnx"
        with replaced_when_done(target) as temporary:
            quantize_onnx(out / f"{stem}.onnx", images, temporary)
            verifier.close("ONNX int8", OnnxNetwork(temporary, shape))
        verifier.written(target)
    if "tflite" in formats:
        names = [out / f"{stem}.tflite", out / f"{stem}_int8.tflite"]
        with contextlib.ExitStack() as stack:
            plain_file, int8_file = (stack.enter_context(replaced_when_done(name)) for name in names)
            convert_tflite(args.tflite_python, model, shape, images, plain_file, int8_file)
            with TFLiteNetwork(args.tflite_python, plain_file) as network:
                verifier.exact("TFLite fp32", network, batch=1)
            with TFLiteNetwork(args.tflite_python, int8_file, reference=True) as network:
                verifier.close("TFLite int8", network)
        for name in names:
            verifier.written(name)
        try:
            arena, problem = arena_size(args.tflite_python, names[1]), "it is not installed there"
        except UserError as error:  # the files are written and verified
            arena, problem = None, str(error)
        verifier.figures["arena"] = arena
        print(
            f"TensorFlow Lite Micro: arena of {arena['total']} bytes, {arena['head']} of them for activations; its "
            f"outputs differ from those verified by {arena['largest_difference']} steps of int8 at the most"
            if arena
            else f"TensorFlow Lite Micro: arena not measured: {problem}"
        )
    return verifier.figures


def save_stock(model: nn.Module, cfg: Config, path: Path) -> None:
    """Writes a stock checkpoint with the class names."""
    meta = DATASETS.build(cfg.test_dataloader.dataset).metainfo
    meta = {key: list(meta[key]) for key in ("classes", "palette") if meta.get(key)}
    written = io.BytesIO()  # torch's own writer hides the cause of an error
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": meta}}, written)
    path.write_bytes(written.getvalue())


class Verifier:
    """Compares exported files with the PyTorch network, and prints the figures of both."""

    def __init__(
        self, cfg, state, model: nn.Module, shape: tuple[int, int, int, int], out: Path, max_drop: float
    ) -> None:
        self.cfg, self.state, self.model, self.shape = cfg, state, model, shape
        self.out, self.max_drop = out, max_drop
        self.figures: dict[str, Any] = {"input_shape": list(shape), "files": []}
        self.metric = ""
        self.reference: float | None = None

    def stock(self, path: Path) -> None:
        """Checks that the file loads with tensors only, and holds the weights of the network and no others."""
        written, own = read_checkpoint(str(path), trusted=False)["state_dict"], self.model.state_dict()
        if written.keys() != own.keys() or not all(written[name].equal(value) for name, value in own.items()):
            raise UserError("the stock checkpoint does not hold the weights that were given")

    def exact(self, name: str, run: RawOutputs, batch: int = 3) -> None:
        """Checks that outputs equal PyTorch's up to rounding, and the metric to three decimals."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, *self.shape[1:], generator=generator)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in Raw(self.model)(images)]
        error = max(
            float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6))
            for a, b in zip(expected, run(images.numpy()), strict=True)
        )
        value = self._measure(name, run)
        self.figures[f"{name} output error"] = error
        print(f"{name}: outputs differ by {error:.1e} of the largest")
        if not (error <= ROUNDING and abs(value - self.reference) <= SAME):  # NaN is neither
            raise UserError(f"{name} does not compute the same as PyTorch: it was not kept")

    def close(self, name: str, run: RawOutputs) -> None:
        """Checks that the metric drops by at most ``max_drop``."""
        value = self._measure(name, run)
        if not self.reference - value <= self.max_drop:
            raise UserError(
                f"{name} loses {self.reference - value:.4f} of {self.metric}, more than --max-drop {self.max_drop}: it "
                "was not kept. More --calibration-images may help"
            )

    def written(self, path: Path) -> None:
        """Records a file that was renamed to its final name."""
        self.figures["files"].append(str(path))
        print(f"written: {path} ({path.stat().st_size / 1024:.0f} KB)")

    def _measure(self, name: str, run: RawOutputs) -> float:
        arguments = (self.cfg, self.state, str(self.out / "log"), self.shape[2:])
        if self.reference is None:
            self.metric, self.reference = evaluate(*arguments)
            self.figures[f"PyTorch {self.metric}"] = self.reference
            print(f"PyTorch: {self.metric} {self.reference:.4f}")
        value = evaluate(*arguments, run)[1]
        self.figures[f"{name} {self.metric}"] = value
        print(f"{name}: {self.metric} {value:.4f} ({value - self.reference:+.4f} against PyTorch)")
        return value
