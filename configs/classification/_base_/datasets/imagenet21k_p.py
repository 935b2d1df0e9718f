"""ImageNet-21K-P of winter 2021 (Ridnik et al., 2021), 20 epochs and 5 of warm-up, 16 GPUs with 128 images each."""

_base_ = "../schedule.py"

data_root = "data/imagenet21k_resized"

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="ImageNet21k", data_root=data_root, data_prefix="imagenet21k_train"),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ImageNet21k", data_root=data_root, data_prefix="imagenet21k_val"),
)
test_dataloader = val_dataloader

train_cfg = dict(by_epoch=True, max_epochs=25, val_interval=1)
auto_scale_lr = dict(enable=True, base_batch_size=2048)
