"""ONNX: export with dynamic batch size, static int8 quantisation, and inference."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmnetaug.errors import UserError
from mmnetaug.models.tensor_mode import tensor_forward

INSTALL = "pip install onnx onnxscript onnxruntime"


class Raw(nn.Module):
    """A model as a function from preprocessed images to raw outputs, for exporters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Maps (N, C, H, W) to the outputs of ``tensor_forward``."""
        return tensor_forward(self.model, image)


def export_onnx(model: nn.Module, input_shape: tuple[int, int, int, int], path: Path) -> None:
    """Exports a model to ONNX, from preprocessed images ``image`` (N, C, H, W) to outputs ``output_0``, ..., for any N.

    Args:
        model: Plain model in eval mode.
        input_shape: ``(1, C, H, W)``.
        path: The file.

    Raises:
        UserError: The packages are not installed, or the model uses an operator that ONNX lacks.
    """
    with packages(), quiet():
        import onnx  # noqa: F401  (for the exporter)
        import onnxscript  # noqa: F401

        device = next((parameter.device for parameter in model.parameters()), None)
        images = torch.zeros(2, *input_shape[1:], device=device)
        raw = Raw(copy.deepcopy(model))
        for module in raw.modules():
            if hasattr(module, "inplace"):
                module.inplace = False  # the file is the same, and written in two thirds of the time
        with torch.no_grad():
            outputs = [f"output_{i}" for i in range(len(raw(images)))]
        try:
            program = torch.onnx.export(
                raw,
                (images,),
                dynamo=True,
                dynamic_shapes=[{0: torch.export.Dim("batch")}],
                input_names=["image"],
                output_names=outputs,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
            raise UserError(f"{type(model).__name__} cannot be exported to ONNX: {cause(error)}") from error
        program.save(str(path))


def quantize_onnx(source: Path, images: Iterable[np.ndarray], path: Path) -> None:
    """Quantises an ONNX file to int8 (QDQ): weights per channel, activations by their range in calibration.

    Weights use 7 of the 8 bits, because ONNX Runtime's kernels for CPUs without VNNI add two products in 16 bits, which
    would overflow. The output layers stay in float32, because one map of a detector holds both logarithms of sizes and
    class scores, of different ranges. docs/deploy.md measures the effect of each.

    Args:
        source: Float ONNX file of :func:`export_onnx`.
        images: Calibration images, each (1, C, H, W).
        path: The int8 file.
    """
    with packages(), quiet():
        import onnx
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        inputs = ({"image": image} for image in images)

        class Reader(CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(inputs, None)

        prepared = path.with_name(f"{path.name}.prepared")
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            graph = onnx.load(str(prepared)).graph
            outputs = {output.name for output in graph.output}
            quantize_static(
                str(prepared),
                str(path),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[node.name for node in graph.node if outputs & set(node.output)],
                reduce_range=True,
            )
        finally:
            prepared.unlink(missing_ok=True)


class OnnxNetwork:
    """An ONNX file as a function from a batch to its outputs.

    Args:
        path: The file.
        input_shape: Expected input shape, ``(1, C, H, W)``; None accepts any.

    Raises:
        UserError: The file is missing, not an ONNX file, for another input, or fails when it is called.
    """

    def __init__(self, path: str | Path, input_shape: tuple[int, ...] | None = None) -> None:
        if not Path(path).is_file():
            raise UserError(f"no file at {path}")
        with packages():
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.path = path
        with self._reported():
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            given = ", ".join(f"{one.type} {one.shape}" for one in inputs)
            raise UserError(f"{path} takes {given or 'nothing'}, not one batch of images: tensor(float) [N, C, H, W]")
        self.name, self.shape = inputs[0].name, tuple(inputs[0].shape)
        if input_shape is not None and self.shape[1:] != tuple(input_shape[1:]):
            raise UserError(
                f"{path} takes images of {'x'.join(map(str, self.shape[1:]))}, the config's test pipeline gives "
                f"{'x'.join(map(str, input_shape[1:]))}: export it from this config"
            )

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        with self._reported():
            return self.session.run(None, {self.name: batch})

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # onnxruntime's errors have no common base class
            raise UserError(f"{self.path} is no ONNX file that can be run: {cause(error)}") from error


@contextlib.contextmanager
def packages() -> Iterator[None]:
    """Turns errors for missing packages into :class:`UserError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX needs {error.name}, which is not installed: {INSTALL}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences progress and warnings of exporters."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def cause(error: BaseException) -> str:
    """The first line of the innermost error of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
