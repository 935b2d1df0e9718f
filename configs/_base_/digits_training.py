"""Handwritten digits, as the demo trains: a tiny network learns them in minutes, from scratch."""

_base_ = ["./digits_data.py", "mmdet::_base_/default_runtime.py"]

train_dataloader = dict(batch_size=8)
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=7, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=5e-3, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True, begin=0, end=7, T_max=7, eta_min=0),
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=20))
custom_hooks = [dict(type="mmnetaug.CPUTuningHook")]
randomness = dict(seed=0)
