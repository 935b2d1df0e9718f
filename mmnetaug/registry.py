"""The registries of mmnetaug: children of MMEngine's, so that configs say ``mmnetaug.NetAug`` from any scope."""

from mmengine import registry as root

MODELS = root.Registry("model", parent=root.MODELS, scope="mmnetaug", locations=["mmnetaug"])
DATASETS = root.Registry("dataset", parent=root.DATASETS, scope="mmnetaug", locations=["mmnetaug"])
TRANSFORMS = root.Registry("transform", parent=root.TRANSFORMS, scope="mmnetaug", locations=["mmnetaug"])
HOOKS = root.Registry("hook", parent=root.HOOKS, scope="mmnetaug", locations=["mmnetaug"])
OPTIM_WRAPPERS = root.Registry("optim_wrapper", parent=root.OPTIM_WRAPPERS, scope="mmnetaug", locations=["mmnetaug"])
VISBACKENDS = root.Registry("vis_backend", parent=root.VISBACKENDS, scope="mmnetaug", locations=["mmnetaug"])
