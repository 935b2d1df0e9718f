"""Everything around a classifier's training: scalars go to a file, and to TensorBoard where that is installed."""

_base_ = "mmpretrain::_base_/default_runtime.py"

custom_imports = dict(imports=["mmnetaug"])

visualizer = dict(
    type="UniversalVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="mmnetaug.TensorboardIfInstalled")],
)

default_hooks = dict(
    train_accuracy=dict(type="mmnetaug.TrainAccuracyHook", images=10000),  # for learning curves
    checkpoint=dict(interval=5, max_keep_ckpts=1, save_best="accuracy/top1"),
)
