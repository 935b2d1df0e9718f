"""What a NetAug step costs: whole optimizer steps of seven ways of training, each in a process of its own.

    a  the plain model as the stock configs train it
    b  the plain model with CPUTuningHook
    c  a straightforward two-pass NetAug: contiguous float32 weight slices per layer, stock layers, no hook
    d  this package with CPUTuningHook
    e  this package without it
    f  as d, distilled in place
    g  c with CPUTuningHook, which is the same settings as d

The processes take turns, and none works while another is timed. Memory is left to glibc but for what the hook sets.
c to g take the same sampled widths in the same iterations. Ratios are those of the steps of one round, so that
noise hits all alike. On a CPU the times are CPU times of one thread (what a step takes on an idle core). On a GPU,
which is used if there is one, CUDA events take the time. The GPU's path has not been run yet.

    python benchmarks/step.py mobilenet_v2_w0.35 --phases full expand --rounds 12 --json step.json
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this folder's coverage.py would pass for the package of that name

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, OPTIM_WRAPPERS, DefaultScope
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from mmnetaug import CPUTuningHook
from mmnetaug.elastic import Elastic, tiny_gradients_in_place

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EXPAND, WIDTH = [1, 1.6, 2.2, 2.8], [1, 1.8, 2.6]


class Case(NamedTuple):
    """A network at the paper's input size, and the authors' factors."""

    model: dict[str, Any]
    size: int
    batch: int
    width: list[float] = WIDTH
    expand: list[float] = EXPAND


def classifier(channels: int, **backbone: Any) -> dict[str, Any]:

    neck = dict(type="mmpretrain.GlobalAveragePooling")
    head = dict(type="mmpretrain.LinearClsHead", num_classes=1000, in_channels=channels)
    return dict(type="mmpretrain.ImageClassifier", backbone=backbone, neck=neck, head=head)


def tiny(arch: str, channels: int, factor: float = 1.0) -> dict[str, Any]:
    return classifier(channels, type="mmnetaug.TinyNet", arch=arch, widen_factor=factor)


def detector(config: str) -> dict[str, Any]:
    model = Config.fromfile(ROOT / "configs" / config).model.to_dict()
    model["data_preprocessor"].pop("batch_augments")
    return model


def cases() -> dict[str, Case]:
    mobilenet_v2 = functools.partial(classifier, 1280, type="mmnetaug.MobileNetV2")
    voc = detector("yolov3_mbv3_w035_voc.py")
    resnet = dict(type="mmpretrain.ResNet", depth=50)
    return {
        "mobilenet_v2_tiny": Case(tiny("mobilenet_v2_tiny", 448), 144, 32),
        "mcunet": Case(tiny("mcunet", 160), 176, 32, [1, 1.6, 2.2]),
        "mobilenet_v3_w0.35": Case(tiny("mobilenet_v3_large", 1280, 0.35), 160, 32, [1, 2, 3]),
        "proxyless_w0.35": Case(tiny("proxyless_mobile", 1280, 0.35), 160, 32),
        "proxyless_w1.0": Case(tiny("proxyless_mobile", 1280), 160, 8),  # factors not published, here and below
        "mobilenet_v2_w0.35": Case(mobilenet_v2(widen_factor=0.35), 160, 32),
        "mobilenet_v2_w1.0": Case(mobilenet_v2(widen_factor=1.0), 160, 8),
        "resnet50": Case(classifier(2048, **resnet), 224, 2),
        "yolov3_320": Case(voc, 320, 8, [1, 2, 3]),
        "yolov3_416": Case(voc, 416, 8, [1, 2, 3]),
    }


def make_batch(case: Case) -> dict[str, Any]:
    """Random images with labels, or with five boxes each."""
    size, generator = case.size, torch.Generator().manual_seed(0)
    inputs = torch.randn(case.batch, 3, size, size, generator=generator).to(DEVICE)
    samples = []
    for _ in range(case.batch):
        if "bbox_head" not in case.model:
            samples.append(DataSample().set_gt_label(int(torch.randint(1000, (), generator=generator))).to(DEVICE))
            continue
        corner, extent = torch.rand(2, 5, 2, generator=generator) * size * 0.45
        sample = DetDataSample(metainfo=dict(img_shape=(size, size), batch_input_shape=(size, size)))
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + extent + 8], 1), labels=torch.randint(20, (5,), generator=generator)
        )
        samples.append(sample.to(DEVICE))
    return dict(inputs=inputs, data_samples=samples)


def build(case: Case, netaug: bool) -> nn.Module:
    config = case.model
    if netaug:
        config = dict(type="mmnetaug.NetAug", model=config, width=case.width, expand=case.expand, input_size=case.size)
    with DefaultScope.overwrite_default_scope("mmdet" if "bbox_head" in case.model else "mmpretrain"):
        return MODELS.build(config).to(DEVICE).train()


class Plain:
    """Variants a and b: one pass of the plain model."""

    def __init__(self, model: nn.Module, batch: dict[str, Any], tuned: bool, bf16: bool = False) -> None:
        self.model, self.batch, self.bf16 = model, batch, bf16
        self.optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, nesterov=True, weight_decay=4e-5)
        if tuned:
            CPUTuningHook().before_run(SimpleNamespace(model=model))

    def one_pass(self) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.bf16):
            losses = self.model(**self.batch, mode="loss")
        self.model.parse_losses(losses)[0].backward()

    def step(self, iteration: int, phase: str) -> None:
        self.one_pass()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Straightforward(Plain):
    """Variants c and g: both passes one after the other, every layer cutting its weight out as the authors' do."""

    def __init__(self, model: nn.Module, batch: dict[str, Any], tuned: bool) -> None:
        super().__init__(model, batch, tuned)
        model.elastic.driven = True
        for layer in model.modules():
            if isinstance(layer, Elastic) and isinstance(layer, nn.Conv2d):
                layer.forward = lambda x, layer=layer: layer._conv_forward(x, layer.weight.contiguous(), layer.bias)
            elif isinstance(layer, Elastic) and isinstance(layer, nn.Linear):
                layer.forward = lambda x, layer=layer: F.linear(x, layer.weight.contiguous(), layer.bias)

    def step(self, iteration: int, phase: str) -> None:
        space = self.model.elastic
        self.one_pass()
        with space.at(space.sample(0, iteration, phase == "full", True)):
            self.one_pass()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Ours(Plain):
    """Variants d, e and f: NetAug's optimizer wrapper, as MMEngine's training loop drives it."""

    def __init__(
        self, model: nn.Module, batch: dict[str, Any], tuned: bool, bf16: bool = False, **options: Any
    ) -> None:
        super().__init__(model, batch, tuned, bf16)
        type_ = "mmnetaug.NetAugAmpOptimWrapper" if bf16 else "mmnetaug.NetAugOptimWrapper"
        options |= dict(dtype="bfloat16") if bf16 else {}
        self.wrapper = OPTIM_WRAPPERS.build(dict(type=type_, optimizer=self.optimizer, **options))

    def base_pass(self) -> None:
        with tiny_gradients_in_place():
            self.one_pass()

    def step(self, iteration: int, phase: str) -> None:
        self.wrapper.width, self.wrapper._inner_count = phase == "full", iteration
        with self.wrapper.optim_context(self.model):
            losses = self.model(**self.batch, mode="loss")
        self.wrapper.update_params(self.model.parse_losses(losses)[0])


def timed(run: Callable[[], None]) -> float:
    """Seconds of one call."""
    if DEVICE.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        run()
        events[1].record()
        torch.cuda.synchronize()
        return events[0].elapsed_time(events[1]) / 1000
    begin = time.process_time()
    run()
    return time.process_time() - begin


class Watch(TorchDispatchMode):
    """Follows every operator: storage alive at the peak, and the shortest time the machine could take.

    That time is, operator by operator, the longer of its multiply-adds at the measured peak rate and its bytes at the
    measured bandwidth (each of its tensors read or written once).
    """

    def __init__(self, flops: float = 1.0, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.flops, self.bandwidth = flops, bandwidth
        self.live, self.now, self.peak, self.floor = WeakIdKeyDictionary(), 0, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        for tensor in results:
            self.live[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self.live.values()))
        if not func.is_view:
            read = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
            seconds = sum(tensor.nbytes for tensor in read + results) / self.bandwidth
            count = flop_registry.get(func._overloadpacket)
            if func is torch.ops.aten.convolution_backward.default:  # torch's formula overcounts depthwise ones
                flops = 4 * args[0].numel() * args[2][0].numel()
            else:
                flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
            self.floor += max(seconds, flops / self.flops)
        return out


def peak_rates(bf16: bool) -> tuple[float, float]:
    """Floating-point operations a second of a large matrix product, bytes a second of a large copy."""
    a, b = torch.randn(2, 1536, 1536, device=DEVICE, dtype=torch.bfloat16 if bf16 else torch.float32)
    x, y = torch.randn(2, 2**25, device=DEVICE)
    product = min(timed(lambda: a @ b) for _ in range(6))
    copy = min(timed(lambda: y.copy_(x)) for _ in range(6))
    return 2 * 1536**3 / product, 2 * x.nbytes / copy


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def serve(pipe: Connection, case: Case, variant: str, bf16: bool, threads: int) -> None:
    """Trains one way, a step or a measurement at a time, as the other end of the pipe asks for it."""
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch, model, tuned = make_batch(case), build(case, netaug=variant in "cdefg"), variant in "bdfg"
    bf16 = bf16 and variant in "bdef"
    if variant in "cg":
        trained = Straightforward(model, batch, tuned)
    elif variant in "ab":
        trained = Plain(model, batch, tuned, bf16)
    else:
        trained = Ours(model, batch, tuned, bf16, **(dict(distill=dict()) if variant == "f" else {}))
    answers = {
        "step": lambda iteration, phase: timed(lambda: trained.step(iteration, phase)),
        "base pass": lambda: timed(trained.base_pass if variant in "def" else trained.one_pass),
        "forget gradients": trained.optimizer.zero_grad,
        "resident": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "sampling": lambda: sampling(trained),
        "memory": lambda: memory(trained),
        "roofline": lambda phase: roofline(trained, phase, bf16),
    }
    while question := pipe.recv():
        pipe.send(answers[question[0]](*question[1:]))


class Worker:
    """A process that trains one way."""

    def __init__(self, case: Case, variant: str, bf16: bool, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, case, variant, bf16, threads), daemon=True)
        self.process.start()
        other.close()  # where the process dies, asking it ends in an EOFError

    def ask(self, *question: Any) -> Any:
        self.pipe.send(question)
        return self.pipe.recv()

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.join()


def measure(case: Case, phases: list[str], variants: str, rounds: int, bf16: bool, threads: int) -> dict[str, Any]:
    """All figures of one network."""
    workers = {name: Worker(case, name, bf16, threads) for name in variants}
    result: dict[str, Any] = {"batch": case.batch, "size": case.size}
    for phase in phases:
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(-2, rounds):
            names = list(workers)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                took = workers[name].ask("step", number + 2, phase)
                if number >= 0:  # the first rounds warm up
                    seconds[name].append(took)
            print(f"  {phase}: round {number + 1} of {rounds}", end="\r", file=sys.stderr, flush=True)
        result[phase] = {
            "seconds": {
                name: spread(values) | {"mean": round(statistics.mean(values), 4)} for name, values in seconds.items()
            },
            "ratios": {
                f"{x}/{y}": spread([p / q for p, q in zip(seconds[x], seconds[y], strict=True)])
                | {"of means": round(sum(seconds[x]) / sum(seconds[y]), 4)}
                for x, y in ("ba", "ca", "da", "ea", "db", "dc", "ec", "de", "fd", "dg")
                if {x, y} <= workers.keys()
            },
        }
    result["resident_mb"] = {name: round(worker.ask("resident") / 1e6) for name, worker in workers.items()}
    if {"b", "d"} <= workers.keys():
        result["base_pass_over_plain"] = base_pass_over_plain(workers["d"], workers["b"], rounds)
    if "d" in workers:
        result["sampling_seconds"] = workers["d"].ask("sampling")
        result["peak_mb"] = workers["d"].ask("memory")
        result["roofline"] = workers["d"].ask("roofline", phases[0])
    if "f" in workers:
        result["peak_mb_distilled"] = workers["f"].ask("memory")
    for worker in workers.values():
        worker.stop()
    return result


def base_pass_over_plain(ours: Worker, plain: Worker, rounds: int) -> dict[str, Any]:
    """The elastic model's base pass over the plain model's.

    As in a step, the plain model has no gradients before its pass, and the elastic model those of the augmented pass.
    """
    ratios = []
    for number in range(-1, 2 * rounds):
        both = [plain, ours] if number % 2 else [ours, plain]
        took = {worker: worker.ask("base pass") for worker in both}
        plain.ask("forget gradients")
        if number >= 0:
            ratios.append(took[ours] / took[plain])
    return spread(ratios)


def sampling(ours: Ours) -> float:
    """Seconds that sampling and setting the widths of one step take."""
    space, begin = ours.model.elastic, time.process_time()
    for iteration in range(100):
        with space.at(space.sample(0, iteration)):
            pass
    return (time.process_time() - begin) / 100


def roofline(ours: Ours, phase: str, bf16: bool) -> dict[str, float]:
    """Share of a step that the machine would need at its measured peak rates."""
    flops, bandwidth = peak_rates(bf16)
    with Watch(flops, bandwidth) as watch:
        ours.step(1, phase)
    took = min(timed(lambda: ours.step(1, phase)) for _ in range(2))
    return {
        "peak_gflops": round(flops / 1e9, 1),
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "share": round(watch.floor / took, 3),
    }


def memory(ours: Ours) -> dict[str, Any]:
    """Peak of tensors alive (MB) in the largest network's step, and in the larger pass alone."""
    space = ours.model.elastic
    largest, sample = space.largest(), space.sample

    def peak(run: Callable[[], None]) -> int:
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            run()
            return torch.cuda.max_memory_allocated()
        with Watch() as watch:
            run()
        return watch.peak

    with space.at(largest):
        alone = peak(ours.one_pass)
    ours.optimizer.zero_grad()
    space.sample = lambda *args: largest
    step = peak(lambda: ours.step(0, "full"))
    space.sample = sample
    return {"larger pass": round(alone / 1e6), "step": round(step / 1e6), "ratio": round(step / alone, 3)}


def main() -> None:
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"default: all of {', '.join(known)}")
    parser.add_argument("--phases", nargs="+", choices=["full", "expand"], default=["full", "expand"])
    parser.add_argument("--variants", default="abcdefg", help="some of abcdefg")
    parser.add_argument("--rounds", type=int, default=12, help="at least 2")
    parser.add_argument("--batch", type=int, help="instead of each network's own")
    parser.add_argument("--bf16", action="store_true", help="b, d, e and f under bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="PATH", help="also write the figures; - for standard output alone")
    args = parser.parse_args()
    if unknown := set(args.networks) - known.keys():
        parser.error(f"no such network: {', '.join(unknown)}; there are {', '.join(known)}")
    if args.rounds < 2 or not args.variants or set(args.variants) - set("abcdefg"):
        parser.error("--rounds is at least 2, --variants some of abcdefg")
    out = sys.stderr if args.json == "-" else sys.stdout
    machine = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or platform.machine()
    results: dict[str, Any] = {
        "machine": machine,
        "torch": torch.__version__,
        "threads": args.threads,
        "bf16": args.bf16,
    }
    for name in args.networks or known:
        case = known[name]._replace(**({"batch": args.batch} if args.batch else {}))
        results[name] = measure(case, args.phases, args.variants, args.rounds, args.bf16, args.threads)
        print(f"{name}: {json.dumps(results[name])}", file=out, flush=True)
        if args.json and args.json != "-":
            temporary = Path(f"{args.json}.tmp")
            temporary.write_text(json.dumps(results, indent=2))
            temporary.replace(args.json)
    if args.json == "-":
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
