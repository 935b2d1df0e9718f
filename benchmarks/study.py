"""Does NetAug work? Trains all that the manifest (study_runs.py) names, and writes docs/results.md.

    python benchmarks/study.py run --cifar data/cifar10 --cards data/cards --jobs 2   # start it again and it goes on
    python benchmarks/study.py run --only "micro*"                                    # these experiments alone
    python benchmarks/study.py gradients --cifar data/cifar10            # how the two gradients lie before training
    python benchmarks/study.py report                                    # tables, curves and plots of what is finished

Every finished run is a line of docs/results.csv, and is not run again. Figures are of the last epoch, not the best.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import fnmatch
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this folder's coverage.py would pass for the package of that name

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger

from benchmarks.records import interval
from benchmarks.study_runs import EXPERIMENTS, TASKS, Experiment
from mmnetaug.analysis.cost import count_cost
from mmnetaug.analysis.tradeoff import Point, macs_saved, plot_tradeoff
from mmnetaug.apis.build import build_model
from mmnetaug.files import read_log, replaced_when_done

FOLDER = ROOT / "work_dirs/study"
DOCS = ROOT / "docs"
BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
COLUMNS = (
    *("experiment", "seed", "settings", "test", "train", "minutes", "machine", "finished"),
    *("test_curve", "train_curve", "cosine", "loss_ratio", "sizes"),
)
SERIES = COLUMNS[8:]
writing = threading.Lock()


# --- the record: one line of docs/results.csv per finished run --------------------------------------------------------


def read_record() -> dict[tuple[str, int], dict[str, Any]]:
    """The finished runs, by experiment and seed; series are dicts by epoch, or by input size.

    Raises:
        SystemExit: A run was made with other settings than the manifest has now.
    """
    record = {}
    path = DOCS / "results.csv"
    for row in csv.DictReader(path.read_text().splitlines()) if path.exists() else []:
        experiment = BY_NAME.get(row["experiment"])
        if experiment is None or row["settings"] != settings(experiment):
            sys.exit(f"{path}: {row['experiment']} is not what the manifest has now; remove its lines to run it again")
        row |= {key: float(row[key]) if row[key] else None for key in ("test", "train", "minutes")}
        row |= {key: _series(row[key]) for key in SERIES}
        record[row["experiment"], int(row["seed"])] = row
    return record


def keep(row: dict[str, Any]) -> None:
    """Adds a finished run to the record, in place of an earlier one (a teacher trained again for its checkpoint)."""
    path = DOCS / "results.csv"
    with writing:
        lines = path.read_text().splitlines() if path.exists() else []
        run = (row["experiment"], str(row["seed"]))
        rows = [other for other in csv.DictReader(lines) if (other["experiment"], other["seed"]) != run]
        with replaced_when_done(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows([*rows, {key: _text(value) for key, value in row.items()}])


def settings(experiment: Experiment) -> str:
    """What a run depends on besides its seed, in one line."""
    return " ".join([experiment.config, f"epochs={experiment.epochs}", *experiment.options])


def _text(value: Any) -> Any:
    if isinstance(value, dict):
        return " ".join(f"{key}:{number:.6g}" for key, number in value.items())
    return f"{value:.6g}" if isinstance(value, float) else value


def _series(text: str) -> dict[int, float]:
    return {int(key): float(number) for key, number in (entry.split(":") for entry in text.split())}


def processor() -> str:
    """What the machine computes with."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


# --- running ----------------------------------------------------------------------------------------------------------


def folder(name: str, seed: int) -> Path:
    """Where a run lives while it is not finished, and its checkpoints afterwards."""
    return FOLDER / slug(name) / str(seed)


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def checkpoint(experiment: Experiment, seed: int) -> Path:
    """The tiny network of a run's last epoch."""
    return folder(experiment.name, seed) / f"epoch_{experiment.epochs}_tiny.pth"


def commands(experiment: Experiment, seed: int, data: str) -> dict[str, list[str]]:
    """The commands of one run: training, and measuring its last checkpoint by the config without NetAug."""
    work_dir, config = folder(experiment.name, seed), ROOT / "configs" / experiment.config
    train = [f"randomness.seed={seed}", *experiment.options]
    if experiment.netaug:
        train.append(f"optim_wrapper.seed={seed}")
    if experiment.start:
        train.append(f"load_from={checkpoint(BY_NAME[experiment.start], 0)}")
    plain = ROOT / "configs" / experiment.plain
    own = network_options(experiment)
    found: dict[str, list[Any]] = {
        "train": [ROOT / "tools/train.py", config, "--work-dir", work_dir, "--resume", "--cfg-options", *train]
    }
    if experiment.sizes:
        found["test"] = [
            *(ROOT / "tools/sweep.py", "--model", "run", plain, checkpoint(experiment, seed)),
            *("--sizes", *experiment.sizes, "--work-dir", work_dir / "sweep", "--json", work_dir / "test.json"),
        ]
    else:
        found["test"] = [
            *(ROOT / "tools/test.py", plain, checkpoint(experiment, seed)),
            *("--work-dir", work_dir / "test", "--json", work_dir / "test.json"),
            *(("--cfg-options", *own) if own else ()),
        ]
    root = ["--data-root", data] if data else []
    return {step: [str(command[0]), *root, *map(str, command[1:])] for step, command in found.items()}


def network_options(experiment: Experiment) -> list[str]:
    """The options that change a plainly trained network, with which it is to be measured, too."""
    return [option for option in experiment.options if not experiment.netaug and option.startswith("model.")]


def run(experiment: Experiment, seed: int, data: str) -> dict[str, Any]:
    """Trains and measures; returns what was kept. A run that was interrupted goes on from its last checkpoint.

    Raises:
        RuntimeError: A command failed; its output is in the run's folder.
    """
    work_dir = folder(experiment.name, seed)
    work_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    minutes = work_dir / "minutes.json"  # of training so far, over all of its interruptions
    for step, command in commands(experiment, seed, data).items():
        begin = time.time()
        with open(work_dir / f"{step}.log", "a") as log:
            code = subprocess.run(
                [sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
            ).returncode
        if step == "train":
            before = json.loads(minutes.read_text()) if minutes.exists() else 0.0
            with replaced_when_done(minutes) as temporary:
                temporary.write_text(json.dumps(before + (time.time() - begin) / 60))
        if code:
            raise RuntimeError(f"{experiment.name}, seed {seed}: see {work_dir / step}.log")
    measured = json.loads((work_dir / "test.json").read_text())
    sizes = {point["size"]: 100 * point["accuracy"] for point in measured.get("points", ())}
    metric = TASKS[experiment.task].logged
    train = curve(work_dir, f"train_{metric}")
    row = dict(
        experiment=experiment.name,
        seed=seed,
        settings=settings(experiment),
        test=sizes[experiment.size] if sizes else measured["metrics"][metric],
        train=train.get(experiment.epochs),
        minutes=json.loads(minutes.read_text()),
        machine=processor(),
        finished=datetime.date.today().isoformat(),
        test_curve=curve(work_dir, metric),
        train_curve=train,
        cosine=means_by_epoch(work_dir, "gradient_cosine"),
        loss_ratio=loss_ratio(work_dir),
        sizes=sizes,
    )
    keep(row)
    return row


def scalars(work_dir: Path, name: str) -> list[dict[str, Any]]:
    """What a run logged with a value of this name, over all of its interruptions."""
    return [entry for entry in read_log(work_dir) if name in entry]


def curve(work_dir: Path, name: str) -> dict[int, float]:
    """A metric by epoch, in percent."""
    scale = 1 if name.endswith("top1") else 100
    return {entry["step"]: scale * entry[name] for entry in scalars(work_dir, name)}


def means_by_epoch(work_dir: Path, name: str) -> dict[int, float]:
    """The mean over each epoch of a value that is logged during training."""
    by_epoch: dict[int, list[float]] = {}
    for entry in scalars(work_dir, name):
        by_epoch.setdefault(entry["epoch"], []).append(entry[name])
    return {epoch: statistics.mean(values) for epoch, values in by_epoch.items()}


def loss_ratio(work_dir: Path) -> dict[int, float]:
    """The augmented networks' loss over the tiny network's, by epoch; below 1, they are ahead of it."""
    tiny, augmented = means_by_epoch(work_dir, "loss"), means_by_epoch(work_dir, "loss_aug")
    return {epoch: loss / tiny[epoch] for epoch, loss in augmented.items()}


def run_all(args: argparse.Namespace) -> None:
    """Runs what is not finished, several at a time, in the manifest's order; seed by seed."""
    data = {"cifar": args.cifar, "cards": args.cards, "digits": ""}
    finished = read_record()
    chosen = [e for e in EXPERIMENTS if any(fnmatch.fnmatch(e.name, pattern) for pattern in args.only)]
    seeds = args.seeds or sorted({seed for e in chosen for seed in e.seeds})
    todo = [(e, s) for s in seeds for e in chosen if s in e.seeds and (e.name, s) not in finished]
    needed = {BY_NAME[name] for e, _ in todo for name in e.needs if not checkpoint(BY_NAME[name], 0).exists()}
    todo = [(e, 0) for e in EXPERIMENTS if e in needed] + [run for run in todo if run[1] or run[0] not in needed]
    begin, total = time.time(), sum(e.cost for e, _ in todo)
    spent, failed = 0.0, []
    ready = {e.name: threading.Event() for e in needed}

    def start(experiment: Experiment, seed: int) -> dict[str, Any]:
        for name in experiment.needs:
            if name in ready:
                ready[name].wait()
        try:
            return run(experiment, seed, data[TASKS[experiment.task].data])
        finally:
            if experiment in needed:
                ready[experiment.name].set()

    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {pool.submit(start, e, s): (e, s) for e, s in todo}
        for job in as_completed(jobs):
            experiment, seed = jobs[job]
            spent += experiment.cost
            left = (time.time() - begin) / spent * (total - spent) / 3600
            if job.exception():
                failed.append(job.exception())
                print(f"failed: {job.exception()}", flush=True)
            else:
                row = job.result()
                print(f"{experiment.name}, seed {seed}: {row['test']:.2f}, {row['minutes']:.1f} min; ", end="")
                print(f"about {left:.1f} h left", flush=True)
    sys.exit(bool(failed))


# --- the angle between the two gradients before training --------------------------------------------------------------


def gradients(args: argparse.Namespace) -> None:
    """Writes how the two gradients lie to each other before training: 8 batches of 125 images, as many networks."""
    from benchmarks.study_parts import InMemoryCifar10, shared_gradients

    MMLogger.get_instance("study", log_level="WARNING")  # init_weights tells of every parameter
    rows = [("network", "initialisation", "cosine", "length of the augmented gradient over the base one's")]
    images = InMemoryCifar10(args.cifar, "train", images_per_class=100)
    for network, config in (("micro", "micro"), ("MobileNetV3 w0.35", "pretrain")):
        for name, kind, init in (
            ("preserving, the default", "NetAug", "preserving"),
            ("matched init", "MatchedNetAug", "preserving"),
            ("authors' init", "NetAug", "authors"),
        ):
            cfg = Config.fromfile(ROOT / f"configs/study/{config}_netaug.py")
            cfg.model |= dict(type=f"mmnetaug.{kind}", init=init)
            model = build_model(cfg).train()
            torch.manual_seed(0)
            model.init_weights()
            space, found = model.elastic, []
            space.driven = True
            for number, numbers in enumerate(torch.randperm(len(images)).view(8, -1)):
                data = model.data_preprocessor(pseudo_collate([images[int(i)] for i in numbers]))
                pair = []
                for widths in (space.base(), space.sample(0, number)):
                    model.zero_grad()
                    with space.at(widths):
                        model(**data, mode="loss")["loss"].backward()
                    pair.append(shared_gradients(model))
                base, augmented = pair
                found.append((torch.cosine_similarity(base, augmented, dim=0), augmented.norm() / base.norm()))
            rows.append((network, name, *(f"{mean:.2f}" for mean in torch.tensor(found).mean(0))))
            print(*rows[-1], sep=", ", flush=True)
    with replaced_when_done(DOCS / "results_start.csv") as path, open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


# --- the report -------------------------------------------------------------------------------------------------------


def difference(record: dict, experiment: Experiment) -> str:
    """An experiment minus its baseline, paired by seed, as text; empty where there is nothing to compare."""
    names = experiment.name, experiment.baseline
    pairs = [[record.get((name, seed)) for name in names] for seed in experiment.seeds]
    found = [ours["test"] - theirs["test"] for ours, theirs in pairs if ours and theirs]
    if len(found) > 1:
        return "{:+.2f} ± {:.2f}".format(*interval(found))
    return f"{found[0]:+.2f} (one seed)" if found else ""


def report(args: argparse.Namespace) -> None:
    """Writes docs/results.md and its plots from docs/results.csv."""
    record = read_record()
    if not record:
        sys.exit("nothing is finished: python benchmarks/study.py run")
    log = "log", "--reverse", "--format=%h of %ad", "--date=format:%Y-%m-%d %H:%M", "--", "benchmarks/study_runs.py"
    commits = subprocess.run(["git", *log], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    machines = "; ".join(sorted({row["machine"] for row in record.values()}))
    reading = Path(__file__).with_name("study_reading.md").read_text()
    lines = [
        "# Does it work? What the study measured",
        "",
        "Written by `python benchmarks/study.py report` from [results.csv](results.csv), one line of which is one run; "
        "only *What it says* is written by hand, in `benchmarks/study_reading.md`. Every run was fixed beforehand in "
        f"`benchmarks/study_runs.py` (commits {', '.join(commits)}). Figures are of the last epoch, in percent, "
        "mean ± standard deviation over seeds. Differences are paired by seed, with their 95 % confidence interval "
        "(Student's t, so wide with three seeds). *Loss ratio*: the augmented networks' loss over the tiny network's "
        f"in the last epoch; below 1, they are ahead of it. Machine: {machines}, one thread a run.",
        "",
        reading.strip(),
        "",
        f"![The augmented networks' loss over the tiny network's]({plot_loss_ratios(record)})",
        "",
        "The two gradients before training (`python benchmarks/study.py gradients`):",
        "",
    ]
    header, *rows = csv.reader((DOCS / "results_start.csv").read_text().splitlines())
    lines += [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    for title, task in TASKS.items():
        experiments = [e for e in EXPERIMENTS if e.task == title and any((e.name, s) in record for s in e.seeds)]
        if experiments:
            lines += ["", f"## {title[0].upper()}{title[1:]}", "", task.text, "", *table(record, experiments)]
            lines += plots(record, title, experiments)
    missing = [f"{e.name} (seed {s})" for e in EXPERIMENTS for s in e.seeds if (e.name, s) not in record]
    if missing:
        lines += ["", f"## Not run yet ({len(missing)} of {sum(len(e.seeds) for e in EXPERIMENTS)})", ""]
        lines += [", ".join(missing) + "."]
    with replaced_when_done(DOCS / "results.md") as path:
        Path(path).write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def table(record: dict, experiments: Iterable[Experiment]) -> list[str]:
    """Experiments as rows of a Markdown table."""
    lines = [
        "| experiment | epochs | seeds | test | on training images | loss ratio | minutes a run | minus | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for e in experiments:
        own = [record[e.name, s] for s in e.seeds if (e.name, s) in record]
        test, train, minutes = ([row[key] for row in own] for key in ("test", "train", "minutes"))
        spread = f" ± {statistics.stdev(test):.2f}" if len(test) > 1 else ""
        trained = f"{statistics.mean(train):.2f}" if None not in train else "–"
        ratios = [row["loss_ratio"].get(e.epochs) for row in own]  # none where nothing was augmented
        ratio = f"{statistics.mean(ratios):.3f}" if None not in ratios else "–"
        lines.append(
            f"| {e.name} | {e.epochs} | {len(own)} | {statistics.mean(test):.2f}{spread} "
            f"| {trained} | {ratio} | {statistics.mean(minutes):.1f} | {e.baseline} | {difference(record, e)} |"
        )
    return lines


def plot_loss_ratios(record: dict) -> str:
    """Draws over training whether the augmented networks are ahead of the tiny one; returns the file's name."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    axes.set_prop_cycle(color=plt.colormaps["tab20"].colors)
    for e in EXPERIMENTS:
        series = [record[e.name, s]["loss_ratio"] for s in e.seeds if (e.name, s) in record]
        if any(series) and not BY_NAME[e.baseline].netaug:  # no ablations
            means = {epoch: statistics.mean(ratios[epoch] for ratios in series) for epoch in series[0]}
            axes.plot([epoch / e.epochs for epoch in means], list(means.values()), label=e.name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="share of the training", ylabel="augmented networks' loss / tiny network's")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, "results_loss_ratio.png")
    return "results_loss_ratio.png"


def plots(record: dict, task: str, experiments: list[Experiment]) -> list[str]:
    """Draws what a task has to show; returns the lines that show it."""
    lines: list[str] = []
    plotted = [e for e in experiments if e.plotted]
    name = slug(task.rpartition(": ")[2])
    if plotted:
        figure, axes = plt.subplots(figsize=(7, 4.5))
        for index, e in enumerate(plotted):
            runs = [record[e.name, s] for s in e.seeds if (e.name, s) in record]
            for key, style in (("test_curve", "-"), ("train_curve", ":")):
                steps = sorted(set.intersection(*(set(row[key]) for row in runs)))
                means = [statistics.mean(row[key][step] for row in runs) for step in steps]
                axes.plot(steps, means, style, color=f"C{index}", label=e.name if style == "-" else None)
        axes.set(xlabel="epoch", ylabel=f"{TASKS[task].metric} (%): test solid, training images dotted")
        axes.grid(alpha=0.3)
        axes.legend()
        save(figure, f"results_{name}.png")
        lines += ["", f"![Learning curves](results_{name}.png)"]
    cosines = {e.name: record[e.name, 0]["cosine"] for e in experiments if (e.name, 0) in record}
    if any(cosines.values()):
        figure, axes = plt.subplots(figsize=(7, 3.5))
        for label, series in cosines.items():
            if series:
                axes.plot(list(series), list(series.values()), label=label)
        axes.set(xlabel="epoch", ylabel="cosine of the two gradients\non the tiny network's weights")
        axes.grid(alpha=0.3)
        axes.legend()
        save(figure, f"results_{name}_cosine.png")
        lines += ["", f"![Cosine between base and augmented gradients](results_{name}_cosine.png)"]
    swept = [e for e in experiments if len(e.sizes) > 1 and any((e.baseline, s) in record for s in e.seeds)]
    if swept:
        lines += ["", "AP50 of every checkpoint at several input sizes, and what is saved at equal AP50:", ""]
        lines += sweep_table(record, swept)
        names = dict.fromkeys(name for e in swept for name in (e.baseline, e.name))
        curves = {name: points(record, BY_NAME[name]) for name in names}
        with replaced_when_done(DOCS / f"results_{name}_sweep.png") as path:
            plot_tradeoff(curves, "AP50", path, "mean of all seeds")
        lines += ["", f"![AP50 over MACs](results_{name}_sweep.png)"]
    return lines


def sweep_table(record: dict, experiments: list[Experiment]) -> list[str]:
    """MACs saved by each experiment over its baseline, seed by seed and by the mean curves."""
    lines = ["| experiment | minus | AP50 by input size | MACs saved by the mean curves | seed by seed, on average |"]
    lines.append("|---|---|---|---|---|")
    for e in experiments:
        seeds = [s for s in e.seeds if {(e.name, s), (e.baseline, s)} <= record.keys()]
        found = [
            saving.figures()["mean"]
            for s in seeds
            if (saving := macs_saved(*(points(record, BY_NAME[name], [s]) for name in (e.baseline, e.name))))
        ]
        saving = macs_saved(points(record, BY_NAME[e.baseline], seeds), points(record, e, seeds))
        sizes = ", ".join(f"{point.size}: {100 * point.accuracy:.1f}" for point in points(record, e))
        each = ", ".join(f"{mean:+.0%}" for mean in found)
        lines.append(f"| {e.name} | {e.baseline} | {sizes} | {saving or 'no common range'} | {each} |")
    return lines


def points(record: dict, experiment: Experiment, seeds: Sequence[int] | None = None) -> list[Point]:
    """Accuracy over MACs of an experiment, the mean of its seeds."""
    rows = [record[experiment.name, s] for s in seeds or experiment.seeds if (experiment.name, s) in record]
    return [
        Point(
            size, statistics.mean(row["sizes"][size] for row in rows) / 100, count_macs(experiment.plain, size), 0, 0, 0
        )
        for size in experiment.sizes
    ]


@functools.cache
def count_macs(config: str, size: int) -> int:
    """MACs of a config's network at an input size."""
    cfg = Config.fromfile(ROOT / "configs" / config)
    return count_cost(build_model(cfg), (1, 3, size, size)).macs


def save(figure: plt.Figure, name: str) -> None:
    """Writes a figure to docs/."""
    with replaced_when_done(DOCS / name) as path:
        figure.savefig(path, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run", help="train and measure what is not finished")
    runs.add_argument("--cifar", default="data/cifar10", help="CIFAR-10: class folders, or where to download it to")
    runs.add_argument("--cards", default="data/cards", help="playing cards in VOC layout")
    runs.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    runs.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="experiments by name")
    runs.add_argument("--seeds", nargs="+", type=int, help="these alone, to spread over machines")
    runs.set_defaults(do=run_all)
    start = commands.add_parser("gradients", help="measure the angle between the two gradients before training")
    start.add_argument("--cifar", default="data/cifar10", help="as for run")
    start.set_defaults(do=gradients)
    commands.add_parser("report", help="write docs/results.md and its plots").set_defaults(do=report)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
