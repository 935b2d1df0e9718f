"""Kills a training run again and again, resumes it each time, and compares its end with an undisturbed run's.

The run is the demo's detector on a few of its scenes, with everything on that has state: momentum, learning-rate and
NetAug schedules, channel sorting, EMA, best-checkpoint keeping. Its pipeline has no random transforms, so that the two
runs see the same batches. Kills (SIGKILL) are aimed in turn at a step, a checkpoint being written, and a validation.

    python benchmarks/resume.py --kills 10
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this folder's coverage.py would pass for the package of that name

from mmengine.config import Config

MOMENTS = ("step", "checkpoint", "validation")


def write_config(path: Path, epochs: int) -> None:
    """The demo, small and without random transforms."""
    config = Config.fromfile(ROOT / "configs/yolov3_mbv3_w035_netaug_digits.py")
    for loader, images in ((config.train_dataloader, 32), (config.val_dataloader, 16)):
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        loader.dataset.update(indices=images)
    config.train_dataloader.dataset.pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True),
        dict(type="Resize", scale=(160, 160), keep_ratio=True),
        dict(type="PackDetInputs"),
    ]
    config.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1)
    config.param_scheduler = [
        dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True, end=epochs, T_max=epochs)
    ]
    config.default_hooks.logger = dict(type="LoggerHook", interval=1)
    config.default_hooks.checkpoint = dict(
        type="mmnetaug.TinyCheckpointHook", interval=1, max_keep_ckpts=1, save_best="auto", rule="greater"
    )
    config.custom_hooks = [
        dict(type="mmnetaug.NetAugScheduleHook", width_until=0.5),
        dict(type="mmnetaug.ChannelSortHook"),
        dict(type="EMAHook", momentum=0.1),
    ]
    config.randomness = dict(seed=0)
    config.dump(path)


def half_written(work_dir: Path) -> list[Path]:
    """What mmnetaug.files.replaced_when_done is writing, or was when the run was killed."""
    return [path for path in work_dir.glob(".*.pth") if re.match(r"\.\d+\.", path.name)]


def start(config: Path, work_dir: Path) -> subprocess.Popen:
    for left in half_written(work_dir):  # seen again, it would pass for a new one
        left.unlink()
    command = [sys.executable, ROOT / "tools/train.py", config, "--work-dir", work_dir, "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(work_dir / "output.txt", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)


def wait_for(moment: str, process: subprocess.Popen, work_dir: Path, generator: random.Random) -> bool:
    """Waits until the run is where it is to be killed; False if it ended before."""
    sign = {"step": "Epoch(train)", "checkpoint": None, "validation": "Epoch(val)"}[moment]
    delay = generator.uniform(0, 4) if moment == "step" else generator.uniform(0, 0.05)
    while process.poll() is None:
        found = half_written(work_dir) if sign is None else sign in (work_dir / "output.txt").read_text()
        if found:
            time.sleep(delay)
            return process.poll() is None
        time.sleep(0.002)
    return False


def check_files(work_dir: Path) -> None:
    """Every file under a final name is complete, and a tiny twin holds its checkpoint's weights."""
    for path in work_dir.glob("*.pth"):
        tiny = torch.load(path, map_location="cpu", weights_only=path.stem.endswith("_tiny"))
        large = path.with_name(path.name.replace("_tiny", ""))
        if large != path and large.exists() and large.stat().st_mtime_ns <= path.stat().st_mtime_ns:
            weights = torch.load(large, map_location="cpu", weights_only=False)["state_dict"]
            for name, value in tiny["state_dict"].items():
                assert torch.equal(weights[name][tuple(map(slice, value.shape))], value), f"{path}: {name}"


def final_state(work_dir: Path, epochs: int) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(work_dir / f"epoch_{epochs}.pth", map_location="cpu", weights_only=False)
    return {**checkpoint["state_dict"], **{f"ema.{k}": v for k, v in checkpoint["ema_state_dict"].items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", metavar="PATH", help="also write the figures; - for standard output alone")
    args = parser.parse_args()
    out = sys.stderr if args.json == "-" else sys.stdout
    generator = random.Random(args.seed)

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.py"
        write_config(config, args.epochs)
        reference, killed = Path(folder) / "reference", Path(folder) / "killed"
        for work_dir in (reference, killed):
            work_dir.mkdir()
        begin = time.time()
        if start(config, reference).wait():
            sys.exit((reference / "output.txt").read_text())
        print(f"undisturbed run: {time.time() - begin:.0f} s", file=out, flush=True)

        kills = []
        while len(kills) < args.kills:
            moment = MOMENTS[len(kills) % len(MOMENTS)]
            process = start(config, killed)
            if not wait_for(moment, process, killed, generator):
                break
            process.kill()
            process.wait()
            check_files(killed)
            files = sorted(path.name for path in killed.glob("*.pth"))
            kills.append({"moment": moment, "checkpoints": files})
            left = (time.time() - begin) / (len(kills) + 1) * (args.kills - len(kills))
            print(f"killed in a {moment}, left {files}; about {left:.0f} s to go", file=out, flush=True)
        if start(config, killed).wait():
            sys.exit((killed / "output.txt").read_text())
        check_files(killed)
        one, other = final_state(reference, args.epochs), final_state(killed, args.epochs)
        differing = [name for name in one if not torch.equal(one[name], other[name])]

    result = {"kills": kills, "tensors": len(one), "differing": len(differing), "seconds": round(time.time() - begin)}
    print(f"{len(kills)} kills; {len(differing)} of {len(one)} final tensors differ", file=out)
    if args.json == "-":
        print(json.dumps(result, indent=2))
    elif args.json:
        Path(args.json).write_text(json.dumps(result, indent=2))
    if len(kills) < args.kills:
        sys.exit(f"the run ended after {len(kills)} kills: it takes more --epochs")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
