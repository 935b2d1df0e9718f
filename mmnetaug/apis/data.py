"""Fills a config with the data of a command line."""

from __future__ import annotations

import argparse

from mmengine.config import Config

from mmnetaug.datasets import fill_config
from mmnetaug.errors import DataError, UserError


def fill_data(cfg: Config, args: argparse.Namespace) -> None:
    """Applies ``--data-root`` to a config, and fills in layout and classes if the config requests that.

    Raises:
        DataError: The data are missing.
        UserError: The config has no data root.
    """
    try:
        fill_config(cfg, args.data_root)
    except DataError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def fill_test_data(cfg: Config, args: argparse.Namespace, path: str) -> None:
    """:func:`fill_data` of a config, at this path, that is measured on its test data.

    Raises:
        DataError: The data are missing.
        UserError: The config has no data root, or no test data.
    """
    fill_data(cfg, args)
    if not cfg.get("test_dataloader"):
        raise UserError(f"{path} has no test_dataloader")
