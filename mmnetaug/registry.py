"""The registries of mmnetaug: children of MMEngine's, so that configs say ``mmnetaug.NetAug`` from any scope."""

from collections.abc import Mapping
from typing import Any

from mmengine import registry as root

MODELS = root.Registry("model", parent=root.MODELS, scope="mmnetaug", locations=["mmnetaug"])
DATASETS = root.Registry("dataset", parent=root.DATASETS, scope="mmnetaug", locations=["mmnetaug"])
TRANSFORMS = root.Registry("transform", parent=root.TRANSFORMS, scope="mmnetaug", locations=["mmnetaug"])
HOOKS = root.Registry("hook", parent=root.HOOKS, scope="mmnetaug", locations=["mmnetaug"])
OPTIM_WRAPPERS = root.Registry("optim_wrapper", parent=root.OPTIM_WRAPPERS, scope="mmnetaug", locations=["mmnetaug"])
VISBACKENDS = root.Registry("vis_backend", parent=root.VISBACKENDS, scope="mmnetaug", locations=["mmnetaug"])


def as_list(value: Any) -> list:
    """What a config holds as one or several (an evaluator, say), as a list; of nothing, an empty one."""
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


def type_name(config: Mapping[str, Any]) -> str:
    """The ``type`` of a config without its scope; types may be given as names or as the classes themselves."""
    kind = config.get("type", "")
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
