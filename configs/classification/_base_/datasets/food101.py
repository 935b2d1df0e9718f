"""Food-101, 101 classes."""

_base_ = "../transfer.py"

data_root = "data/food-101"

train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="Food101", data_root=data_root, split="train"),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="Food101", data_root=data_root, split="test"),
)
test_dataloader = val_dataloader
