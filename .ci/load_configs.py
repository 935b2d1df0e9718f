"""Read every config of the repository with the MMEngine that is installed; neither torch nor mmnetaug is needed."""

import sys
from pathlib import Path

import mmengine
from mmengine.config import Config

CONFIGS = Path(__file__).parents[1] / "configs"


def main() -> int:
    """Print what does not load; returns the exit code."""
    paths = sorted(CONFIGS.rglob("*.py"))
    failures = []
    for path in paths:
        try:
            Config.fromfile(path, import_custom_modules=False)
        except Exception as error:  # a config is a program: it may raise anything
            failures.append(f"{path.relative_to(CONFIGS.parent)}: {type(error).__name__}: {error}")
    print(*failures, sep="\n", end="\n" * bool(failures))
    print(f"{len(paths) - len(failures)} of {len(paths)} configs load, mmengine {mmengine.__version__}")
    return bool(failures) or not paths


if __name__ == "__main__":
    sys.exit(main())
