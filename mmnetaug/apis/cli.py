"""The command line of the tools: arguments, files that must exist, reporting errors, writing results.

Nothing here imports torch or OpenMMLab, which takes seconds, before it must: ``--help``, a path where nothing is and a
broken config are answered at once. What a tool does is in the module of :mod:`mmnetaug.apis` that has its name.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import functools
import gc
import glob
import importlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmnetaug.errors import CheckpointError, DataError, UserError
from mmnetaug.files import STORAGE_ERRORS, is_local, replaced_when_done
from mmnetaug.layouts import no_folder

if TYPE_CHECKING:
    from mmengine.config import Config

FOLDER = Path(__file__).parents[1] / ".mim"
"""Links to configs and tools, where OpenMMLab's mim expects them."""

TOOLS = FOLDER / "tools"

Work = Callable[..., Any]
"""Does what the command line says; returns the figures for ``--json``, if there are any."""

EXPORTED = (".onnx", ".tflite")
"""Suffixes of exported networks, which some tools take in place of a checkpoint."""

SECTIONS = (
    *("model", "work_dir", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg", "val_cfg", "test_cfg"),
    *("auto_scale_lr", "optim_wrapper", "param_scheduler", "val_evaluator", "test_evaluator", "default_hooks"),
    *("custom_hooks", "data_preprocessor", "load_from", "resume", "launcher", "env_cfg", "log_processor", "log_level"),
    *("visualizer", "default_scope", "randomness", "experiment_name", "cfg"),
)
"""Parts of a config: the arguments of MMEngine's Runner, whose import takes seconds."""

CUTOFF = 0.87
"""Likeness from which on a name is taken for a misspelling: above that of names in stock configs that other code
consumes, such as ``magnitude_key`` and ``deformable_groups``."""

AUTO = "auto"
"""``--resume`` without a checkpoint."""

BACKENDS = {
    "tensorboard": ("TensorboardVisBackend", "TensorBoard"),
    "wandb": ("WandbVisBackend", "Weights & Biases"),
}
"""Package and option -> type of the backend, its name."""

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")


def config_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments of all tools that take a config."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="config file, or the name of one that comes with mmnetaug")
    add_cfg_options_argument(parser)
    parser.add_argument("--data-root", metavar="PATH", help="folder of the data, in place of the config's data_root")
    return parser


def add_cfg_options_argument(parser: argparse.ArgumentParser, whose: str = "the config") -> None:
    """``--cfg-options``, a list of ``KEY=VALUE`` that :func:`mmnetaug.apis.load.load_config` reads."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        type=setting,
        metavar="KEY=VALUE",
        help=f"override values of {whose}",
    )


def setting(text: str) -> str:
    """``KEY=VALUE``, for argparse."""
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text}")
    return text


def at_least_one(text: str) -> int:
    """An integer of 1 or more, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def add_size_argument(parser: argparse.ArgumentParser) -> None:
    """``--size``, which means the same in every tool."""
    parser.add_argument(
        "--size",
        type=at_least_one,
        metavar="N",
        help="height and width of the network's input, in place of the config's",
    )


def add_tflite_argument(parser: argparse.ArgumentParser) -> None:
    """``--tflite-python``, of tools that run .tflite files."""
    parser.add_argument(
        "--tflite-python",
        metavar="PATH",
        help="interpreter of LiteRT's environment (docs/deploy.md), for .tflite; default: this one, if it has LiteRT",
    )


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of tools that run MMEngine's Runner."""
    parser.add_argument("--work-dir", help="folder of logs and checkpoints (default: ./work_dirs/<config name>)")
    add_size_argument(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="job launcher")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="let checkpoints from elsewhere run code on this machine when they are loaded (they may hold any pickle)",
    )
    # torch.distributed.launch passes this one; torchrun sets the environment instead
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)


def is_camera(path: Path) -> bool:
    """Whether an input is the number of a camera; a file of that name comes first."""
    return str(path).isdecimal() and not path.is_file()


def find_inputs(item: str) -> list[Path]:
    """Finds the images and videos of an argument. Raises UserError if there are none."""
    if is_camera(Path(item)):
        return [Path(item)]
    if Path(item).is_dir():
        found = sorted(path for path in Path(item).iterdir() if path.suffix.lower() in (*IMAGES, *VIDEOS))
    else:
        found = [Path(item)] if Path(item).is_file() else sorted(map(Path, glob.glob(item, recursive=True)))
    if not found:
        raise UserError(
            f"nothing to predict on: no file, glob or folder {item} with images ({', '.join(IMAGES)}) "
            f"or videos ({', '.join(VIDEOS)})"
        )
    return found


def shipped_configs() -> dict[str, Path]:
    """The configs that come with mmnetaug, without base configs: name -> path."""
    folder = (FOLDER / "configs").resolve()
    return {path.stem: path for path in sorted(folder.rglob("*.py")) if "_base_" not in str(path.relative_to(folder))}


def find_config(name: str) -> Path:
    """Finds a config by its path or, if there is no such file, by the name of one that comes with mmnetaug.

    Raises:
        UserError: There is no such config.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_configs()
    if (stem := name.removesuffix(".py")) in shipped:
        return shipped[stem]
    close = difflib.get_close_matches(Path(stem).name, shipped, n=3)
    hint = f"; close to it are {', '.join(close)}" if close else ""
    raise UserError(f"no config file at {name}, and none of that name comes with mmnetaug{hint}")


def is_main_process() -> bool:
    """Whether this is the main process; works before the process group exists."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def start_tool(tool: str, args: argparse.Namespace, needs_data: bool = False) -> int:
    """Checks the command line of a tool and reads its configs, then imports and runs it by :func:`run_tool`.

    Args:
        tool: Its name, that of a module of :mod:`mmnetaug.apis` and of a function there, which takes the arguments and
            the configs.
        args: Arguments of the command line.
        needs_data: Whether it fails without data.

    Returns:
        The exit code: 0, or 1 after a user error.
    """

    def prepare() -> list[Config]:
        check_files(args)
        return load_configs(args, needs_data)

    def work(args: argparse.Namespace, *configs: Config) -> Any:
        with no_garbage():
            from .options import check_options

            for cfg in configs:
                check_options(cfg)
            module = importlib.import_module(f"mmnetaug.apis.{tool}")
        return getattr(module, tool)(args, *configs)

    return run_tool(work, args, prepare)


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Imports without a search for garbage, and exempts what was imported from those that follow.

    Each takes 0.4 s for OpenMMLab's modules, and MMEngine asks for one for every data set.
    """
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if len(sys.modules) > before:  # after an error, too: the search at the exit
            gc.freeze()


def run_tool(work: Work, args: argparse.Namespace, prepare: Callable[[], Iterable[Any]] = tuple) -> int:
    """Runs a function, writes the figures it returns as ``--json`` requests, reports user errors without a traceback.

    With ``--json -`` only the figures are written to standard output, and everything that is printed goes to standard
    error. All code that loads checkpoints unpickles only tensors and plain types, unless ``--trust-checkpoint`` is
    given.

    Args:
        work: The function to run. ``args.checkpoints`` is the :class:`~mmnetaug.checkpoint.ReadOnce` for checkpoints
            that MMEngine loads.
        args: Arguments of the command line.
        prepare: Returns further arguments of ``work``, before torch is imported.

    Returns:
        The exit code: 0, or 1 after a user error. Any other exception passes through with its traceback.
    """

    def figures() -> Any:
        prepared = prepare()
        with no_garbage():  # not at the top, since it imports torch
            from mmnetaug.checkpoint import ReadOnce, unpickling

        trusted = getattr(args, "trust_checkpoint", False)
        with unpickling(trusted), ReadOnce() as args.checkpoints:
            return work(args, *prepared)

    as_json = functools.partial(json.dumps, indent=2, default=float)
    target = getattr(args, "json", None)
    try:
        if target == "-":
            with contextlib.redirect_stdout(sys.stderr):
                found = figures()
            if is_main_process():
                print(as_json(found))
        elif target and is_main_process():
            with replaced_when_done(target) as temporary:  # first, so that an unwritable path fails at once
                temporary.write_text(as_json(figures()) + "\n")
        else:
            figures()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (*STORAGE_ERRORS, errno.EACCES, errno.EPERM):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_files(args: argparse.Namespace) -> None:
    """Checks that the files exist which a command line names; ``args.inputs`` becomes a list of their paths.

    Raises:
        UserError: One does not.
    """
    for config in named_configs(args):
        find_config(config)
    if hasattr(args, "inputs"):
        args.inputs = [path for item in args.inputs for path in find_inputs(item)]
    given = [getattr(args, "checkpoint", None), *(model[2] for model in getattr(args, "model", []) if len(model) > 2)]
    given += [path for path in [getattr(args, "resume", None)] if path != AUTO]
    for path in filter(None, given):
        check_checkpoint(path)


def check_checkpoint(path: str) -> None:
    """Checks that a checkpoint or an exported network exists, unless it is to be downloaded.

    Raises:
        UserError: It does not.
    """
    if is_local(path) and not Path(path).expanduser().is_file():
        if path.endswith(EXPORTED):
            raise UserError(f"no file at {path}")
        raise CheckpointError(f"no checkpoint at {path}")


def named_configs(args: argparse.Namespace) -> list[str]:
    """The configs that a command line names, as ``config`` or one for each ``--model LABEL CONFIG ...``."""
    if hasattr(args, "config"):
        return [args.config]
    return [model[1] for model in getattr(args, "model", []) if len(model) > 1]


def load_configs(args: argparse.Namespace, needs_data: bool) -> list[Config]:
    """Reads the configs that a command line names.

    Raises:
        UserError: One is absent or cannot be used, or a checkpoint is absent that training by it starts from.
        DataError: It is to find out the layout of data whose folder is absent.
    """
    from .load import load_config, starts_from

    if hasattr(args, "config"):
        configs = [load_config(args)]
    else:  # their work directories are not that of the arguments
        named = [argparse.Namespace(config=path, cfg_options=args.cfg_options) for path in named_configs(args)]
        configs = [load_config(one) for one in named]
    if hasattr(args, "resume"):  # only training starts from them
        for path in starts_from(configs[0], args.resume):
            check_checkpoint(path)
    for cfg in configs if needs_data else ():
        root = args.data_root or cfg.get("data_root")
        if cfg.get("data_layout") == "auto" and not Path(root).is_dir():
            raise DataError(no_folder(root))
    return configs


def check_names(given: Iterable[str], known: Collection[str]) -> None:
    """Checks the names of the parts of a config.

    Raises:
        UserError: Some are misspelt; the message has a line for each, with the name that was probably meant.
    """
    if lines := [f"{name} is no part of a config: did you mean {near}?" for name, near in near_misses(given, known)]:
        raise UserError("\n".join(lines))


def near_misses(given: Iterable[str], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields names that are not known, each with the known name that is most like it, if one is."""
    for name in given:
        if name not in known:
            near = [one for one in known if sorted(one) == sorted(str(name))]  # modle, whose likeness is just 0.8
            near += difflib.get_close_matches(str(name), known, n=1, cutoff=CUTOFF)
            if near:
                yield name, near[0]
