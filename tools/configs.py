"""List the configs that come with mmnetaug: their names, which every tool takes for a path, and their paths."""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatch

from mmnetaug.apis.cli import run_tool, shipped_configs
from mmnetaug.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="names to list, such as 'yolov3_*'")
    return run_tool(list_configs, parser.parse_args(argv))


def list_configs(args: argparse.Namespace) -> None:
    """Print a line for each config whose name matches."""
    found = {name: path for name, path in shipped_configs().items() if fnmatch(name, args.pattern)}
    if not found:
        raise UserError(f"no config is called {args.pattern}")
    width = max(map(len, found))
    for name, path in found.items():
        print(f"{name:{width}}  {path}")


if __name__ == "__main__":
    sys.exit(main())
