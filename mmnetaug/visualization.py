"""A visualisation backend for MMEngine that writes to TensorBoard only where TensorBoard is installed.

Configs cannot ask what is installed: MMEngine takes a config that imports anything for one of its lazy configs.
"""

from __future__ import annotations

import importlib.util

from mmengine.visualization import TensorboardVisBackend
from mmengine.visualization.vis_backend import BaseVisBackend

from mmnetaug.registry import VISBACKENDS


class _NoVisBackend(BaseVisBackend):
    """Accepts everything and writes nothing."""

    experiment = None

    def _init_env(self) -> None:
        """There is nothing to set up."""


@VISBACKENDS.register_module()
def TensorboardIfInstalled(save_dir: str) -> BaseVisBackend:
    """Build MMEngine's ``TensorboardVisBackend``, or a backend that writes nothing where tensorboard is missing.

    Args:
        save_dir: Folder for the event files.
    """
    backend = TensorboardVisBackend if importlib.util.find_spec("tensorboard") else _NoVisBackend
    return backend(save_dir)
