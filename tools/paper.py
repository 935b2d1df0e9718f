"""Print what the paper's networks cost; write docs/paper.md, the paper's rows and their configs, and metafile.yml."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config

import mmnetaug  # noqa: F401  (checks the environment, registers everything)
from mmnetaug.analysis.cost import count_cost
from mmnetaug.apis.build import build_model
from mmnetaug.apis.cli import run_tool
from mmnetaug.files import replaced_when_done
from mmnetaug.paper import NETWORKS, ROWS, Row

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs/paper.md"
METAFILE = REPO / "configs/metafile.yml"
MEASURED = REPO / "docs/measured.json"

INTRODUCTION = """# The paper's rows, and the configs that run them

Written by `python tools/paper.py --write` from `mmnetaug/paper.py`; every row's config is tested against that table.
The column *paper* holds the numbers printed in [Cai et al., 2022](https://arxiv.org/abs/2110.08890), a dash where a
number is only drawn in a figure or not given. **None of these rows has been trained here**: they need ImageNet or COCO
and many GPUs (the paper trained MobileNetV2-Tiny for 210 GPU hours, 245 with NetAug). What was measured here is in the
last section.

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


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/paper.md and configs/metafile.yml")
    parser.add_argument(
        "--json", metavar="PATH", help="also write the networks' cost there; - is standard output, alone"
    )
    return run_tool(paper, parser.parse_args(argv))


def paper(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the networks' cost; returns it."""
    figures = count_networks()
    print("\n".join(_network_table(figures)))
    if args.write:
        for path, text in ((PAGE, render(figures)), (METAFILE, metafile(figures))):
            with replaced_when_done(path) as temporary:
                temporary.write_text(text)
            print(f"written: {path}")
    return figures


def count_networks() -> list[dict[str, Any]]:
    """Cost of the paper's classifiers: input side in pixels, parameters, MACs of convolutions and linear layers."""
    figures = []
    for name, network in NETWORKS.items():
        model = build_model(Config.fromfile(REPO / f"configs/classification/imagenet/{name}_in1k.py"))
        cost = count_cost(model, (1, 3, network.size, network.size))
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


def metafile(figures: list[dict[str, Any]]) -> str:
    """What OpenMMLab's ``mim`` reads: every config that is to be run, by name. No weights are published.

    Args:
        figures: Of ``count_networks``.
    """
    costs = {one["network"]: one for one in figures}
    networks = {row.config: row.network for row in ROWS if row.data == "ImageNet"}
    lines = [
        "# Written by tools/paper.py.",
        "Collections:",
        "- Name: NetAug",
        "  Paper:",
        "    Title: Network Augmentation for Tiny Deep Learning",
        "    URL: https://arxiv.org/abs/2110.08890",
        "  README: docs/paper.md",
        "Models:",
    ]
    for path in sorted((REPO / "configs").rglob("*.py")):
        config = str(path.relative_to(REPO / "configs"))
        if "_base_" not in config and not config.startswith("study/"):  # the study's need benchmarks/
            lines += [f"- Name: {path.stem}", "  In Collection: NetAug", f"  Config: configs/{config}"]
            if cost := costs.get(networks.get(config, "")):
                lines += ["  Metadata:", f"    Parameters: {cost['params']}", f"    FLOPs: {cost['macs']}"]
    return "\n".join(lines) + "\n"


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
    model = build_model(Config.fromfile(REPO / "configs" / config))
    return f", YOLOv3 ({count_cost(model, (1, 3, 416, 416)).macs / 1e6:.0f} M MACs at 416)"


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
