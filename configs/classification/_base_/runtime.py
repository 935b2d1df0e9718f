"""Everything around a classifier's training: scalars go to a file, and to TensorBoard where that is installed."""

import importlib.util

_base_ = "mmpretrain::_base_/default_runtime.py"

custom_imports = dict(imports=["mmnetaug"])

vis_backends = [dict(type="LocalVisBackend")]
if importlib.util.find_spec("tensorboard"):
    vis_backends.append(dict(type="TensorboardVisBackend"))
visualizer = dict(type="UniversalVisualizer", vis_backends=vis_backends)

default_hooks = dict(
    train_accuracy=dict(type="mmnetaug.TrainAccuracyHook", images=10000),  # for learning curves
    checkpoint=dict(interval=5, max_keep_ckpts=2, save_best="accuracy/top1"),
)
