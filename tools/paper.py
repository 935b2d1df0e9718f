"""Print the cost of the paper's networks; write docs/paper.md, the paper's rows and configs, from the metafile."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from mmnetaug.apis.cli import run_tool
from mmnetaug.files import replaced_when_done

if TYPE_CHECKING:
    from mmnetaug.analysis.cost import Cost

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs/paper.md"
METAFILE = REPO / "configs/metafile.yml"
MEASURED = REPO / "docs/measured.json"
METRICS = {"Top 1 Accuracy": "top-1", "AP50": "AP50"}
RECIPE = {
    "epochs": "Epochs",
    "batch": "Batch Size",
    "gpus": "GPUs",
    "lr": "Learning Rate",
    "weight_decay": "Weight Decay",
    "size": "Input Size",
    "dropout": "Dropout",
}

INTRODUCTION = """# The paper's rows, and the configs that run them

Written by `python tools/paper.py --write` from [configs/metafile.yml](../configs/metafile.yml); every row's config is
tested against it. The column *paper* holds the numbers printed in
[Cai et al., 2022](https://arxiv.org/abs/2110.08890), a dash where a number is only drawn in a figure or not given.
**None of these rows has been trained here**: they need ImageNet or COCO and many GPUs (the paper trained
MobileNetV2-Tiny for 210 GPU hours, 245 with NetAug). What was measured here is in the last section.

A row is run with

```bash
python tools/train.py configs/CONFIG --cfg-options OPTIONS
```

or `tools/dist_train.sh` on several GPUs; the learning rate follows the batch (`auto_scale_lr`). *from* names the
pre-training that a row starts from: add `load_from=` and the `*_tiny.pth` of its last epoch to the options. Before
training the data are checked; where they are absent, a message says where they come from and how to lay them out.

Figure 5's curves, and its headline (41 % fewer MACs at equal AP50 on VOC, 38 % on COCO), are drawn from the detectors
of table 4 by `tools/sweep.py`, see [deploy.md](deploy.md).

What the configs take from the paper, what from the authors' code, and what neither says is written in
[configs/classification/README.md](../configs/classification/README.md).
"""


class Network(NamedTuple):
    """A network of the paper's table 1.

    Attributes:
        label: Its name in the paper.
        size: Side of its ImageNet images in pixels.
        params: Parameters of the classifier.
        macs: Multiply-accumulates at that size.
        paper: The two as the paper prints them.
        width: NetAug's width factors.
        expand: NetAug's expand factors.
        published: Whether the authors published the factors.
    """

    label: str
    size: int
    params: int
    macs: int
    paper: str
    width: tuple[float, ...]
    expand: tuple[float, ...]
    published: bool


class Recipe(NamedTuple):
    """How a row is trained.

    Attributes:
        epochs: All of them, warm-up included.
        batch: Images per step, of all GPUs.
        gpus: Number of GPUs that this takes with the config's images per GPU.
        lr: Learning rate at that batch, after warm-up.
        weight_decay: Of weights; classifiers have none on norms and biases.
        size: Side of the test images in pixels.
        dropout: Of the head, in fine-tuning.
    """

    epochs: int
    batch: int
    gpus: int
    lr: float
    weight_decay: float
    size: int
    dropout: float | None


class Row(NamedTuple):
    """One number of the paper.

    Attributes:
        table: Table or figure.
        network: Key of ``NETWORKS``.
        method: The subject of the row.
        data: Data set.
        metric: Of the number.
        paper: The number; None where it is only drawn in a figure.
        config: File below ``configs/``.
        recipe: How the config, with the options, trains.
        options: Values for ``--cfg-options``.
        start: Pre-training that the row starts from: the method of another row, of the same network on ImageNet.
    """

    table: str
    network: str
    method: str
    data: str
    metric: str
    paper: float | None
    config: str
    recipe: Recipe
    options: tuple[str, ...]
    start: str

    @property
    def netaug(self) -> bool:
        """Whether the training itself has augmented passes."""
        return self.method.startswith("NetAug")


def read_metafile(path: Path) -> tuple[dict[str, Network], list[Row]]:
    """The networks, by the names of their configs, and the rows of the paper."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    models = {model["Name"]: model for model in content["Models"]}
    networks, names = {}, {}
    for one in content["Collections"]:
        if "Classifier" in one:
            metadata, factors = models[one["Classifier"]]["Metadata"], one["NetAug"]
            names[one["Name"]] = one["Classifier"].removesuffix("_in1k")
            networks[names[one["Name"]]] = Network(
                label=one["Name"],
                size=metadata["Input Size"],
                params=metadata["Parameters"],
                macs=metadata["FLOPs"],
                paper=one["Printed"],
                width=tuple(factors["width"]),
                expand=tuple(factors["expand"]),
                published=factors["published"],
            )
    rows = []
    for model, row in [(one, row) for one in models.values() for row in one.get("Published", ())]:
        trained = model["Metadata"] | row.get("Metadata", {})
        [(metric, number)] = row["Metrics"].items()
        rows.append(
            Row(
                table=row["Table"],
                network=names[model["In Collection"]],
                method=row["Method"],
                data=row["Dataset"],
                metric=METRICS[metric],
                paper=number,
                config=model["Config"].removeprefix("configs/"),
                recipe=Recipe(**{name: trained.get(key) for name, key in RECIPE.items()}),
                options=tuple(row.get("Options", ())),
                start=row.get("From", ""),
            )
        )
    return networks, rows


NETWORKS, ROWS = read_metafile(METAFILE)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="write docs/paper.md, and add new configs to configs/metafile.yml"
    )
    parser.add_argument(
        "--json", metavar="PATH", help="also write the networks' cost there; - is standard output, alone"
    )
    return run_tool(paper, parser.parse_args(argv))


def paper(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the networks' cost; returns it."""
    figures = count_networks()
    print("\n".join(_network_table(figures)))
    if args.write:
        for path, text in ((PAGE, render(figures)), (METAFILE, with_all_configs(METAFILE.read_text()))):
            with replaced_when_done(path) as temporary:
                temporary.write_text(text)
            print(f"written: {path}")
    return figures


def count_networks() -> list[dict[str, Any]]:
    """Cost of the paper's classifiers: input side in pixels, parameters, MACs of convolutions and linear layers."""
    figures = []
    for name, network in NETWORKS.items():
        cost = _cost(f"classification/imagenet/{name}_in1k.py", network.size)
        figures.append(dict(network=name, input=network.size, params=cost.params, macs=cost.macs))
    return figures


def render(figures: list[dict[str, Any]]) -> str:
    """The page, as Markdown.

    Args:
        figures: Of ``count_networks``.
    """
    lines = [INTRODUCTION, "## The networks", "", *_network_table(figures), ""]
    for table, rows in itertools.groupby(sorted(ROWS, key=_order), key=lambda row: row.table):
        lines += [f"## {table[0].upper()}{table[1:]}", "", *_row_table(list(rows)), ""]
    return "\n".join([*lines, *_measured()])


def with_all_configs(metafile: str) -> str:
    """Adds the configs that the text of a metafile lacks. Those of the study need benchmarks/ and are left out."""
    listed = {model["Config"] for model in yaml.safe_load(metafile)["Models"]}
    for path in sorted((REPO / "configs").rglob("*.py")):
        config = str(path.relative_to(REPO))
        if "_base_" not in config and not config.startswith("configs/study/") and config not in listed:
            metafile += f"- Name: {path.stem}\n  In Collection: NetAug\n  Config: {config}\n"
    return metafile


def _order(row: Row) -> tuple[bool, str]:
    return not row.table.startswith(("Table", "Figure")), row.table.removeprefix("Tables").removeprefix("Table").strip()


def _network_table(figures: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| network | input | parameters | MACs | in the paper | NetAug factors: width; expand |",
        "|---|---|---|---|---|---|",
    ]
    for one in figures:
        network = NETWORKS[one["network"]]
        factors = "; ".join(", ".join(f"{factor:g}" for factor in part) for part in (network.width, network.expand))
        source = "" if network.published else " (not published, ours)"
        lines.append(
            f"| {network.label} | {one['input']} | {one['params'] / 1e6:.3f} M | {one['macs'] / 1e6:.2f} M | "
            f"{network.paper} | {factors}{source} |"
        )
    return lines


def _row_table(rows: list[Row]) -> list[str]:
    # training with mixup changes nothing in the network
    costs = {row.config: _detector_cost(row.config.replace("_mixup", "")) for row in rows if row.metric == "AP50"}
    lines = ["| network | method | from | data | metric | paper | config | options |", "|---|" + "---|" * 7]
    for row in rows:
        label = NETWORKS[row.network].label + costs.get(row.config, "")
        number = "–" if row.paper is None else str(row.paper)
        options = " ".join(f"`{option}`" for option in row.options)
        config = f"[{row.config}](../configs/{row.config})"
        cells = (label, row.method, row.start, row.data, row.metric, number, config, options)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


@functools.cache
def _detector_cost(config: str) -> str:
    return f", YOLOv3 ({_cost(config, 416).macs / 1e6:.0f} M MACs at 416)"


def _cost(config: str, size: int) -> Cost:
    from mmengine.config import Config  # not at the top, since --help needs none of these

    from mmnetaug.analysis.cost import count_cost
    from mmnetaug.apis.build import build_model

    return count_cost(build_model(Config.fromfile(REPO / "configs" / config)), (1, 3, size, size))


def _measured() -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        measured = json.loads(MEASURED.read_text())
        lines = ["## Measured here", ""]
        for section in measured:
            lines += [f"### {section['title']}", "", section["text"], ""]
            header, *rows = section["table"]
            lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
            lines += [f"| {' | '.join(map(str, row))} |" for row in rows] + [""]
        return lines
    return []


if __name__ == "__main__":
    sys.exit(main())
