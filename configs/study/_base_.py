"""CIFAR-10 at its own 32 pixels, in memory: the common part of the study's classifiers (benchmarks/study.py)."""

_base_ = "../classification/_base_/runtime.py"

custom_imports = dict(imports=["mmnetaug", "benchmarks.study_parts"])

data_root = "data/cifar10"
data_preprocessor = dict(
    type="CropFlipPreprocessor", num_classes=10, mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7], to_rgb=False
)

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="InMemoryCifar10", data_root=data_root, split="train"),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="InMemoryCifar10", data_root=data_root, split="test"),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=120, val_interval=10)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, nesterov=True, weight_decay=4e-5),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=390),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, convert_to_iter_based=True),
]

default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=1, save_best=None), logger=dict(interval=100))
custom_hooks = [dict(type="mmnetaug.CPUTuningHook")]
randomness = dict(seed=0)
