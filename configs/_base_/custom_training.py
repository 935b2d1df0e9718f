"""For data of any size, with or without a pre-trained backbone: AdamW is the least sensitive to the learning rate."""

_base_ = "mmdet::_base_/default_runtime.py"

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=100, val_interval=5)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),  # as long however few the epochs
    dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True, begin=0, eta_min=0),
]
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=1, save_best="auto"), logger=dict(interval=10))
custom_hooks = [dict(type="mmnetaug.CPUTuningHook")]  # nothing on a GPU
