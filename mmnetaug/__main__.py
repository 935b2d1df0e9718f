"""The command ``mmnetaug``: runs the tools, which are installed with the package.

``mmnetaug train CONFIG`` is ``python tools/train.py CONFIG`` without a clone. ``python -m mmnetaug`` does the same, for
launchers that start Python modules.
"""

from __future__ import annotations

import argparse
import ast
import runpy
import sys

from mmnetaug.apis.cli import TOOLS

OF_THE_REPOSITORY = ("paper",)  # it writes the repository's own pages


def main() -> None:
    """Runs the tool named first on the command line with the arguments that follow."""
    tools = {path.stem: path for path in sorted(TOOLS.glob("*.py")) if path.stem not in OF_THE_REPOSITORY}
    docs = {name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for name, path in tools.items()}
    lines = [f"  {name:20} {doc.splitlines()[0]}" for name, doc in docs.items()]
    parser = argparse.ArgumentParser(
        prog="mmnetaug",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["tools (mmnetaug TOOL --help says more):", *lines]),
    )
    parser.add_argument("tool", choices=tools, metavar="TOOL")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    args = parser.parse_args()
    sys.argv = [f"mmnetaug {args.tool}", *args.arguments]
    runpy.run_path(str(tools[args.tool]), run_name="__main__")


if __name__ == "__main__":
    main()
