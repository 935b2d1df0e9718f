"""CIFAR-10 as folders of JPEG files, at a budget for two CPU cores: a check that the recipes run, not the paper's."""

_base_ = "../_base_/runtime.py"

data_root = "data/cifar10"  # train/<class>/*.jpg and test/<class>/*.jpg
image_size = 48  # 32 pixels enlarged: at 32 the network's last map would be a single pixel

data_preprocessor = dict(num_classes=10, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomCrop", crop_size=32, padding=4),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Resize", scale=image_size),
    dict(type="PackInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=image_size), dict(type="PackInputs")]

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="CustomDataset", data_root=data_root, data_prefix="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CustomDataset", data_root=data_root, data_prefix="test", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, nesterov=True, weight_decay=4e-5),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, convert_to_iter_based=True),
]

default_hooks = dict(train_accuracy=dict(images=2000), checkpoint=dict(interval=1))
custom_hooks = [dict(type="mmnetaug.CPUTuningHook")]
randomness = dict(seed=0)
