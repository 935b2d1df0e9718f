"""List the configs that come with mmnetaug: their names, which every tool takes for a path, and their paths."""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatch

from mmnetaug.apis.cli import shipped_configs


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="names to list, such as 'yolov3_*'")
    pattern = parser.parse_args(argv).pattern
    found = {name: path for name, path in shipped_configs().items() if fnmatch(name, pattern)}
    if not found:
        print(f"error: no config is called {pattern}", file=sys.stderr)
        return 1
    width = max(map(len, found))
    for name, path in found.items():
        print(f"{name:{width}}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
