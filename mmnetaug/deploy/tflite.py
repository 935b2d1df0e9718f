"""TFLite export. The converter and the interpreters run in a separate environment, see ``tflite_worker.py``."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmnetaug.errors import UserError

from .onnx import Raw, cause, quiet

WORKER = Path(__file__).with_name("tflite_worker.py")


class LeakyMaximum(nn.Module):
    """LeakyReLU as max(x, slope * x), because TFLite's quantiser does not support LeakyReLU."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, x * self.slope)


def convert_tflite(
    python: str,
    model: nn.Module,
    input_shape: tuple[int, int, int, int],
    images: Sequence[np.ndarray],
    float_path: Path,
    int8_path: Path,
) -> None:
    """Converts a model to float32 and int8 .tflite files for one image, with channels-last inputs and outputs.

    Args:
        python: Python interpreter of the environment with LiteRT's converter.
        model: Plain model in eval mode.
        input_shape: ``(1, C, H, W)``.
        images: Calibration images, each (1, C, H, W).
        float_path: The float32 file.
        int8_path: The int8 file.

    Raises:
        UserError: The model cannot be exported or converted, or the environment lacks a package.
    """
    prepared = copy.deepcopy(model).cpu()
    for module in list(prepared.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LeakyReLU) and 0 <= child.negative_slope <= 1:
                setattr(module, name, LeakyMaximum(child.negative_slope))
    with tempfile.TemporaryDirectory() as folder:
        program, calibration = Path(folder, "program.pt2"), Path(folder, "images.npz")
        with quiet():
            try:
                exported = torch.export.export(Raw(prepared), (torch.zeros(input_shape),), strict=False)
            except Exception as error:  # torch.export raises any error of the model's code
                raise UserError(f"{type(model).__name__} cannot be exported: {cause(error)}") from error
            torch.export.save(exported, program)
        np.savez(calibration, *images)
        _run(python, "convert", program, calibration, float_path, int8_path)


def arena_size(python: str, path: Path) -> dict[str, int] | None:
    """Bytes of TensorFlow Lite Micro's arena: ``total``, ``head`` (activations), ``tail``; None if it is not installed.

    ``largest_difference`` is the largest difference between its outputs and those of LiteRT's reference kernels, in
    steps of int8.
    """
    return json.loads(_run(python, "arena", path).splitlines()[-1])


class TFLiteNetwork(contextlib.AbstractContextManager):
    """A .tflite file as a function from a batch to its outputs, computed by LiteRT in a separate environment.

    Args:
        python: Python interpreter of that environment.
        path: The file.
        reference: Whether to use the reference kernels, which compute int8 as TensorFlow Lite Micro does, to the bit.
            LiteRT's default, XNNPACK, is faster and rounds differently.
    """

    def __init__(self, python: str, path: str | Path, reference: bool = False) -> None:
        if not Path(path).is_file():
            raise UserError(f"no file at {path}")
        _check_interpreter(python)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
        self.process = subprocess.Popen(
            [python, str(WORKER), "serve", str(path), "reference" if reference else "default"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=_environment(),
        )

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        return self.timed(batch)[0]

    def timed(self, batch: np.ndarray) -> tuple[list[np.ndarray], float]:
        """The outputs, and the milliseconds of CPU time that LiteRT took, without the transfer between processes."""
        buffer = io.BytesIO()
        np.save(buffer, batch)
        try:
            self.process.stdin.write(len(buffer.getvalue()).to_bytes(8, "little") + buffer.getvalue())
            self.process.stdin.flush()
            size = int.from_bytes(self.process.stdout.read(8), "little")
        except BrokenPipeError:
            size = 0
        if not size:
            self.log.seek(0)
            raise UserError(f"LiteRT could not run the file: {_last_line(self.log.read())}")
        with np.load(io.BytesIO(self.process.stdout.read(size))) as outputs:
            *values, milliseconds = (outputs[name] for name in outputs.files)
        return values, float(milliseconds)

    def __exit__(self, *error: object) -> None:
        self.process.kill()  # closing its input is not enough: forked data loaders hold the pipe, too
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.log.close()


def _check_interpreter(python: str) -> None:
    if not Path(python).is_file():
        raise UserError(f"no interpreter at {python}: --tflite-python names that of LiteRT's environment")


def _run(python: str, *arguments: object) -> str:
    _check_interpreter(python)
    command = [python, str(WORKER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, env=_environment(), check=False)
    if done.returncode:
        raise UserError(f"{arguments[0]} failed in LiteRT's environment: {_last_line(done.stderr)}")
    return done.stdout.decode()


def _environment() -> dict[str, str]:
    """This process's environment variables without those that select its Python packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _last_line(text: bytes) -> str:
    return next(iter(text.decode(errors="replace").strip().splitlines()[-1:]), "no message")
