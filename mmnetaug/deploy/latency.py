"""Latency of a network in PyTorch, ONNX Runtime and LiteRT: one image, one thread, on this machine."""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmnetaug.errors import UserError
from mmnetaug.models.tensor_mode import tensor_forward

from .onnx import OnnxNetwork, export_onnx, quantize_onnx
from .tflite import TFLiteNetwork, convert_tflite

RUNTIMES = {
    "latency_ms": "PyTorch",
    "onnx_ms": "ONNX Runtime",
    "onnx_int8_ms": "ONNX Runtime, int8",
    "litert_ms": "LiteRT",
    "litert_int8_ms": "LiteRT, int8",
}
SECONDS, ROUNDS = 3, 7

Run = Callable[[], tuple[Sequence, float]]
"""Runs a network on one image; returns its outputs and the milliseconds of CPU time."""


def measure_latency(
    model: nn.Module, input_shape: tuple[int, int, int, int], tflite_python: str | None = None
) -> dict[str, float]:
    """Median milliseconds of CPU time for one image, hardly affected by other processes.

    The runtimes take turns, for three seconds and seven rounds at the least.

    Args:
        model: Plain model in eval mode, on the CPU.
        input_shape: ``(1, C, H, W)``.
        tflite_python: Python interpreter of LiteRT's environment.

    Returns:
        The latency in each of ``RUNTIMES``; without ONNX Runtime's if it is not installed or the model cannot be
        exported, which is printed to standard error, and LiteRT's only with ``tflite_python``.

    Raises:
        UserError: LiteRT cannot run the model.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    image = np.random.default_rng(0).standard_normal(input_shape, np.float32)
    tensor = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            infer = torch.inference_mode()(tensor_forward)
            runs: dict[str, Run] = {"latency_ms": functools.partial(_timed, functools.partial(infer, model, tensor))}
            exported, quantized = folder / "float32.onnx", folder / "int8.onnx"
            try:
                export_onnx(model, input_shape, exported)
                quantize_onnx(exported, [image], quantized)  # the ranges do not matter to the speed
                for name, network in ("onnx_ms", OnnxNetwork(exported)), ("onnx_int8_ms", OnnxNetwork(quantized)):
                    runs[name] = functools.partial(_timed, functools.partial(network, image))
            except UserError as error:
                print(f"latency in ONNX Runtime is not measured: {error}", file=sys.stderr)
            if tflite_python:
                files = {"litert_ms": folder / "float32.tflite", "litert_int8_ms": folder / "int8.tflite"}
                convert_tflite(tflite_python, model, input_shape, [image], *files.values())
                for name, path in files.items():
                    litert = stack.enter_context(TFLiteNetwork(tflite_python, path))
                    runs[name] = functools.partial(litert.timed, image)
            return _medians(runs)
    finally:
        torch.set_num_threads(threads)


def _timed(call: Callable[[], Sequence]) -> tuple[Sequence, float]:
    start = time.thread_time()
    outputs = call()
    return outputs, 1000 * (time.thread_time() - start)


def _medians(runs: dict[str, Run]) -> dict[str, float]:
    for run in [*runs.values()] * 3:  # to warm up
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    rounds, end = 0, time.perf_counter() + SECONDS
    while rounds < ROUNDS or time.perf_counter() < end:
        rounds += 1
        for name, run in runs.items():
            times[name].append(run()[1])
    return {name: statistics.median(values) for name, values in times.items()}
