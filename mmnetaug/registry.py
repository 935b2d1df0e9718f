"""The registries of mmnetaug: children of MMEngine's, so that configs say ``mmnetaug.NetAug`` from any scope.

MMEngine imports the locations of a registry when a name is first looked up in it.
"""

from mmengine import registry as root

from .environment import import_datasets

import_datasets()

ROOMS = ["mmnetaug.models", "mmnetaug.datasets", "mmnetaug.demo", "mmnetaug.engine", "mmnetaug.visualization"]

MODELS = root.Registry("model", parent=root.MODELS, scope="mmnetaug", locations=ROOMS)
DATASETS = root.Registry("dataset", parent=root.DATASETS, scope="mmnetaug", locations=ROOMS)
TRANSFORMS = root.Registry("transform", parent=root.TRANSFORMS, scope="mmnetaug", locations=ROOMS)
HOOKS = root.Registry("hook", parent=root.HOOKS, scope="mmnetaug", locations=ROOMS)
OPTIM_WRAPPERS = root.Registry("optim_wrapper", parent=root.OPTIM_WRAPPERS, scope="mmnetaug", locations=ROOMS)
VISBACKENDS = root.Registry("vis_backend", parent=root.VISBACKENDS, scope="mmnetaug", locations=ROOMS)
