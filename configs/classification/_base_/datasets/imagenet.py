"""ImageNet-1k, 150 epochs and 5 of warm-up, 16 GPUs with 128 images each."""

_base_ = "../schedule.py"

data_root = "data/imagenet"

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="ImageNet", data_root=data_root, split="train"),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ImageNet", data_root=data_root, split="val"),
)
test_dataloader = val_dataloader

train_cfg = dict(by_epoch=True, max_epochs=155, val_interval=1)
auto_scale_lr = dict(enable=True, base_batch_size=2048)  # so that fewer GPUs or images need no other learning rate
