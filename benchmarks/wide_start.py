"""Does a tiny detector that starts from a wide one get further than one trained from scratch, for as many minutes?

    python benchmarks/wide_start.py run --seeds 0 1 2     # resumes: finished runs are skipped
    python benchmarks/wide_start.py report                # docs/wide_start.md and docs/wide_start.png

The protocol, fixed after the runs of seed 0 with up to 56 epochs, and before all others:

1. *Detectors.* RTMDet of 1.1 M MACs (``configs/study/digits_narrow.py``) on the demo's digits at 64 pixels, and a wide
   one of the same structure (``digits_narrow_wide.py``).
2. *From the wide one.* The wide detector trains for 28 epochs from scratch. The tiny one starts from its most important
   channels and trains for as many epochs, by its own config; *taught*, it also learns from the wide one's outputs.
3. *From scratch.* The tiny detector by the same config for 28 epochs, for 64, which take as many minutes of CPU time as
   the wide detector's and the tiny one's epochs together, and for more: doubled with seed 0 until that gains nothing.
4. *Claims* are differences in AP50 on the test scenes after the last epoch, paired by seed, with 95 % intervals
   (Student's t). Test scenes choose nothing. Minutes include loading, start-up and the wide detector's training.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of benchmarks/, whose coverage.py numba would take for the package of that name

from benchmarks import records
from mmnetaug.files import replaced_when_done

RESULTS, PAGE, PLOT = (ROOT / f"docs/wide_start.{kind}" for kind in ("csv", "md", "png"))
READING = ROOT / "benchmarks/wide_start_reading.md"  # written by hand
FOLDER = ROOT / "work_dirs/study/digits_narrow"
WIDE_EPOCHS, EPOCHS, EQUAL_TIME = 28, 28, 64
METHODS = {
    "plain": "digits_narrow",
    "wide": "digits_narrow_wide",
    "cut": "digits_narrow",
    "taught": "digits_narrow_taught",
}
"""Configs below ``configs/study``. The last two start from the wide detector of the same seed."""
TEXTS = {
    "plain": "from scratch",
    "wide": "the wide detector",
    "cut": "cut from the wide one",
    "taught": "cut and taught",
}
KEYS, FIGURES = ("method", "epochs", "seed"), ("ap50", "minutes")


def results() -> list[dict]:
    """All finished runs."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return [
            dict(
                method=r["method"],
                epochs=int(r["epochs"]),
                seed=int(r["seed"]),
                ap50=float(r["ap50"]),
                minutes=float(r["minutes"]),
            )
            for r in csv.DictReader(file)
        ]


def record(row: dict) -> None:
    """Adds a run to the results."""
    line = ",".join(str(row[key]) for key in KEYS) + f",{row['ap50']:.4f},{row['minutes']:.2f}\n"
    records.append_line(RESULTS, ",".join((*KEYS, *FIGURES)) + "\n", line)


def call(folder: Path, tool: str, *arguments: object) -> float:
    """Runs one of the tools on one thread, its output in ``folder``; returns its minutes of CPU time.

    Raises:
        SystemExit: It failed.
    """
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / f"{tool}.log").open("w") as log:
        command = [sys.executable, ROOT / f"tools/{tool}.py", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT).returncode
    if code:
        sys.exit(f"{tool} failed: see {folder}/{tool}.log")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime) / 60


def checkpoint(method: str, epochs: int, seed: int) -> Path:
    """The network of a run's last epoch."""
    return FOLDER / f"{method}_{epochs}_{seed}/epoch_{epochs}_tiny.pth"  # no spaces: MMEngine drops them


def train(method: str, epochs: int, seed: int) -> dict[str, float]:
    """One run; returns its test AP50, and its minutes without those of the wide detector."""
    config = ROOT / f"configs/study/{METHODS[method]}.py"
    path, wide = checkpoint(method, epochs, seed), checkpoint("wide", WIDE_EPOCHS, seed)
    folder = path.parent
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    folder.mkdir(parents=True)
    options = [f"randomness.seed={seed}", f"train_cfg.val_interval={epochs}"]
    options += [
        f"{loader}_dataloader.{key}"
        for loader in ("train", "val")
        for key in ("num_workers=0", "persistent_workers=False")
    ]
    minutes = 0.0
    if method in ("cut", "taught"):
        start = folder / "start.pth"
        tiny, large = (ROOT / f"configs/study/{METHODS[name]}.py" for name in ("plain", "wide"))
        minutes += call(folder, "convert_checkpoint", tiny, wide, "--cut-from", large, "--out", start)
        options.append(f"load_from={start}")
    if method == "taught":
        options.append(f"model.teacher_checkpoint={wide}")
    minutes += call(folder, "train", config, "--epochs", epochs, "--work-dir", folder, "--cfg-options", *options)
    plain = config if method == "wide" else ROOT / f"configs/study/{METHODS['plain']}.py"
    call(folder, "test", plain, path, "--work-dir", folder / "test", "--json", folder / "test.json")
    return dict(ap50=json.loads((folder / "test.json").read_text())["metrics"]["pascal_voc/mAP"], minutes=minutes)


def run(args: argparse.Namespace) -> None:
    """Runs what the arguments name and the results do not have; the wide detector first."""
    for seed in args.seeds:
        for name in args.runs:
            method, epochs = name.split(":")
            needed = [("wide", WIDE_EPOCHS)] if method in ("cut", "taught") else []
            for key in [*needed, (method, int(epochs))]:
                done = {(row["method"], row["epochs"], row["seed"]) for row in results()}
                if (*key, seed) not in done or (key in needed and not checkpoint(*key, seed).exists()):
                    figures = train(*key, seed)
                    if (*key, seed) not in done:
                        record(dict(zip(KEYS, (*key, seed), strict=True)) | figures)
                    print(*key, f"seed {seed}: AP50 {figures['ap50']:.3f}, {figures['minutes']:.1f} min", flush=True)


def interval(values: list[float]) -> str:
    """Mean and 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else ""
    return "{:.3f} ± {:.3f}".format(*records.interval(values))


def report(args: argparse.Namespace) -> None:
    """Writes the page and the plot of all finished runs."""
    rows = results()
    groups: dict[tuple[str, int], dict[int, dict]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["epochs"]), {})[row["seed"]] = row
    wide = statistics.mean(row["minutes"] for row in groups["wide", WIDE_EPOCHS].values())
    order = list(METHODS)
    lines = []
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for (method, epochs), runs in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        minutes = statistics.mean(row["minutes"] for row in runs.values()) + wide * (method in ("cut", "taught"))
        cells = [TEXTS[method], epochs, len(runs), interval([row["ap50"] for row in runs.values()]), f"{minutes:.1f}"]
        for reference in (EPOCHS, EQUAL_TIME):
            plain = groups.get(("plain", reference), {})
            pairs = [row["ap50"] - plain[seed]["ap50"] for seed, row in runs.items() if seed in plain]
            cells.append("" if method == "wide" or (method, epochs) == ("plain", reference) else interval(pairs))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for method in ("plain", "cut", "taught"):
        points = sorted((e, runs) for (m, e), runs in groups.items() if m == method)
        if not points:
            continue
        xs = [statistics.mean(r["minutes"] for r in runs.values()) + wide * (method != "plain") for _, runs in points]
        ys = [statistics.mean(r["ap50"] for r in runs.values()) for _, runs in points]
        axes.plot(xs, ys, "o-", label=TEXTS[method])
        for (_, runs), x in zip(points, xs, strict=True):
            axes.plot(
                [x] * len(runs), [r["ap50"] for r in runs.values()], ".", color=axes.lines[-1].get_color(), alpha=0.4
            )
    axes.set(xlabel="minutes of CPU time, the wide detector's included", ylabel="AP50", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with replaced_when_done(PLOT) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight", format="png")
    page = f"""# A tiny detector from a wide one, for as many minutes

Written by `python benchmarks/wide_start.py report` from [wide_start.csv](wide_start.csv), one line of which is one run.
The protocol stands at the head of `benchmarks/wide_start.py`. Differences are paired by seed, with 95 % intervals.
Minutes are of CPU time; those of *cut* and *taught* include {wide:.1f} of the wide detector. Only *What it says* is
written by hand.

## What it says

{READING.read_text().strip()}

![AP50 over CPU time](wide_start.png)

| RTMDet, 64 pixels | epochs | seeds | AP50 | minutes | − scratch, {EPOCHS} epochs | − scratch, {EQUAL_TIME} epochs |
|---|---|---|---|---|---|---|
"""
    page += "\n".join(lines) + "\n"
    with replaced_when_done(PAGE) as temporary:
        Path(temporary).write_text(page)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run", help="train what is not finished")
    runs.add_argument("--seeds", type=int, nargs="+", default=[0])
    runs.add_argument(
        "--runs",
        nargs="+",
        metavar="METHOD:EPOCHS",
        default=[f"cut:{EPOCHS}", f"plain:{EQUAL_TIME}", f"taught:{EPOCHS}", f"plain:{EPOCHS}"],
        help=f"of {', '.join(METHODS)}",
    )
    runs.set_defaults(call=run)
    commands.add_parser("report", help="write docs/wide_start.md").set_defaults(call=report)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
