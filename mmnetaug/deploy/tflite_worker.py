"""Converts to .tflite and runs the result, in a separate environment.

LiteRT's converter needs versions of numpy and protobuf that OpenMMLab does not support, so this file is run as a script
by the interpreter of another environment (see docs/deploy.md). It does not import mmnetaug and communicates by files
and pipes::

    tflite_worker.py convert PROGRAM.pt2 CALIBRATION.npz FLOAT.tflite INT8.tflite
    tflite_worker.py serve MODEL.tflite default|reference
    tflite_worker.py arena MODEL.tflite    # size of the arena in TensorFlow Lite Micro, as JSON

``serve`` takes batches as .npy on standard input, and writes outputs and time as .npz on standard output.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np


def convert(program: str, calibration: str, float_path: str, int8_path: str) -> None:
    """Converts an exported PyTorch program with one input (1, C, H, W), and quantises all of it to int8.

    Images and feature maps are channels-last in the result, as TFLite's operators require.

    Args:
        program: File of ``torch.export.save``.
        calibration: File of calibration images, each (1, C, H, W) float32.
        float_path: Path of the float32 model.
        int8_path: Path of the int8 model.
    """
    import litert_torch
    import torch
    from ai_edge_quantizer import quantizer, recipe

    exported = torch.export.load(program)
    [image] = exported.example_inputs[0]
    maps = [i for i, output in enumerate(exported.module()(image)) if output.dim() == 4]
    module = litert_torch.to_channel_last_io(exported.module(), args=[0], outputs=maps)
    litert_torch.convert(module, (image.permute(0, 2, 3, 1).contiguous(),)).export(float_path)

    worker = quantizer.Quantizer(float_path, recipe.static_wi8_ai8())
    [(signature, names)] = _interpreter(float_path).get_signature_list().items()
    with np.load(calibration) as images:
        samples = [{names["inputs"][0]: images[name].transpose(0, 2, 3, 1)} for name in images.files]
    result = worker.calibrate({signature: samples})
    with open(int8_path, "wb") as file:
        file.write(for_microcontrollers(bytes(worker.quantize(result).quantized_model)))


def for_microcontrollers(model: bytes) -> bytes:
    """Moves weights into the flatbuffer, and removes names and metadata.

    The quantiser appends weights after the flatbuffer. TensorFlow Lite Micro does not support this: it would treat
    weights as activations and compute with uninitialised memory.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    for buffer in content.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(model[buffer.offset : buffer.offset + buffer.size], np.uint8)
            buffer.offset = buffer.size = 0
    for graph in content.subgraphs:
        for index, tensor in enumerate(graph.tensors):
            tensor.name = str(index).encode()
    builder = flatbuffers.Builder(len(model))
    builder.Finish(content.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def serve(model: str, kernels: str) -> None:
    """Runs batches (N, C, H, W) float32 from standard input until it ends; outputs are float32, maps (N, C, H, W).

    The last array is the CPU time in milliseconds that LiteRT took on its one thread.
    """
    interpreter = _interpreter(model, kernels)
    [details] = interpreter.get_input_details()
    [(_, names)] = interpreter.get_signature_list().items()
    runner = interpreter.get_signature_runner()
    outputs = runner.get_output_details()
    results, sys.stdout = sys.stdout.buffer, sys.stderr  # standard output is for results only
    while (batch := _read(sys.stdin.buffer)) is not None:
        collected: dict[str, list[np.ndarray]] = {
            name: [] for name in sorted(names["outputs"], key=lambda name: int(name.rpartition("_")[2]))
        }
        seconds = 0.0
        for image in batch.transpose(0, 2, 3, 1):
            inputs = {names["inputs"][0]: _quantise(image[None], details)}
            start = time.thread_time()
            given = runner(**inputs)
            seconds += time.thread_time() - start
            for name, values in collected.items():
                values.append(_dequantise(given[name], outputs[name]))
        stacked = [np.concatenate(values) for values in collected.values()]
        stacked = [value.transpose(0, 3, 1, 2) if value.ndim == 4 else value for value in stacked]
        buffer = io.BytesIO()
        np.savez(buffer, *stacked, 1000 * seconds)
        results.write(len(buffer.getvalue()).to_bytes(8, "little") + buffer.getvalue())
        results.flush()


def arena(model: str) -> None:
    """Runs the model once in TensorFlow Lite Micro, and prints its arena's size in bytes and the error of its outputs.

    The error is the largest difference from the outputs of LiteRT's reference kernels for one random image, in steps of
    int8. LiteRT's default kernels round differently, and in deep networks that adds up.
    """
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError:
        print("null")
        return
    interpreter = runtime.Interpreter.from_file(model, arena_size=64 << 20)  # more than any microcontroller has
    details = interpreter.get_input_details(0)
    image = np.random.default_rng(0).integers(-128, 128, details["shape"]).astype(details["dtype"])
    interpreter.set_input(image, 0)
    interpreter.invoke()
    text = _standard_error_of(interpreter.print_allocations)
    found = {name: int(size) for name, size in re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", text)}
    reference = _interpreter(model, "reference")
    reference.set_tensor(reference.get_input_details()[0]["index"], image)
    reference.invoke()
    pairs = [
        (interpreter.get_output(i).astype(int), reference.get_tensor(output["index"]).astype(int))
        for i, output in enumerate(reference.get_output_details())
    ]
    print(json.dumps({**found, "largest_difference": max(int(np.abs(a - b).max()) for a, b in pairs)}))


def _interpreter(path: str, kernels: str = "default"):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = {"default": OpResolverType.AUTO, "reference": OpResolverType.BUILTIN_REF}[kernels]
    interpreter = Interpreter(path, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    return interpreter


def _quantise(values: np.ndarray, details: dict) -> np.ndarray:
    if details["dtype"] == np.float32:
        return np.ascontiguousarray(values, np.float32)
    scale, zero = details["quantization"]
    return np.clip(np.round(values / scale) + zero, -128, 127).astype(details["dtype"])


def _dequantise(values: np.ndarray, details: dict) -> np.ndarray:
    if details["dtype"] == np.float32:
        return values
    scale, zero = details["quantization"]
    return (values.astype(np.float32) - zero) * scale


def _read(stream) -> np.ndarray | None:
    header = stream.read(8)
    if len(header) < 8:
        return None
    return np.load(io.BytesIO(stream.read(int.from_bytes(header, "little"))))


def _standard_error_of(call) -> str:
    """Captures the standard error of a call, including that of C++."""
    with tempfile.TemporaryFile() as file, contextlib.ExitStack() as stack:
        kept = os.dup(2)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 2)
        os.dup2(file.fileno(), 2)
        call()
        file.seek(0)
        return file.read().decode()


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {"convert": convert, "serve": serve, "arena": arena}
    commands[sys.argv[1]](*sys.argv[2:])
