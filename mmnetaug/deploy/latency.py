"""Latency of a network in PyTorch and in ONNX Runtime (float32 and int8): one image, one thread, on this machine."""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmnetaug.errors import UserError
from mmnetaug.models.tensor_mode import tensor_forward

from .onnx import OnnxNetwork, export_onnx, quantize_onnx

RUNTIMES = {"latency_ms": "PyTorch", "onnx_ms": "ONNX Runtime", "onnx_int8_ms": "ONNX Runtime, int8"}
SECONDS, ROUNDS = 3, 7


def measure_latency(model: nn.Module, input_shape: tuple[int, int, int, int]) -> dict[str, float]:
    """Median milliseconds of CPU time for one image, hardly affected by other processes.

    The runtimes take turns, for three seconds and seven rounds at the least.

    Args:
        model: Plain model in eval mode, on the CPU.
        input_shape: ``(1, C, H, W)``.

    Returns:
        The latency in each of ``RUNTIMES``; without ONNX Runtime's if it is not installed or the model cannot be
        exported, which is printed to standard error.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    image = np.random.default_rng(0).standard_normal(input_shape, np.float32)
    tensor = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            runs: dict[str, Callable[[], object]] = {"latency_ms": lambda: tensor_forward(model, tensor)}
            try:
                for name, network in _onnx_networks(model, image, Path(folder)).items():
                    runs[name] = functools.partial(network, image)
            except UserError as error:
                print(f"latency in ONNX Runtime is not measured: {error}", file=sys.stderr)
            return _medians(runs)
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode(False)
def _onnx_networks(model: nn.Module, image: np.ndarray, folder: Path) -> dict[str, OnnxNetwork]:
    """The model in ONNX Runtime. One random image calibrates int8: the ranges do not matter to the speed."""
    exported, quantized = folder / "float32.onnx", folder / "int8.onnx"
    export_onnx(model, image.shape, exported)
    quantize_onnx(exported, [image], quantized)
    return {"onnx_ms": OnnxNetwork(exported), "onnx_int8_ms": OnnxNetwork(quantized)}


def _medians(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    for run in [*runs.values()] * 3:  # to warm up
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    rounds, end = 0, time.perf_counter() + SECONDS
    while rounds < ROUNDS or time.perf_counter() < end:
        rounds += 1
        for name, run in runs.items():
            start = time.thread_time()
            run()
            times[name].append(1000 * (time.thread_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}
