"""A visualisation backend for MMEngine that writes to TensorBoard if that is installed.

Configs cannot check it themselves: MMEngine treats a config with imports as a lazy config.
"""

from __future__ import annotations

import importlib.util

from mmengine.visualization import TensorboardVisBackend
from mmengine.visualization.vis_backend import BaseVisBackend

from mmnetaug.registry import VISBACKENDS


class _NoVisBackend(BaseVisBackend):
    """Ignores everything."""

    experiment = None

    def _init_env(self) -> None:
        """Does nothing."""


@VISBACKENDS.register_module()
def TensorboardIfInstalled(save_dir: str) -> BaseVisBackend:
    """Builds MMEngine's ``TensorboardVisBackend``, or a backend that writes nothing if tensorboard is missing.

    Args:
        save_dir: Folder for the event files.
    """
    backend = TensorboardVisBackend if importlib.util.find_spec("tensorboard") else _NoVisBackend
    return backend(save_dir)
