"""CUB-200-2011, 200 classes."""

_base_ = "../transfer.py"

data_root = "data/CUB_200_2011"

train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="CUB", data_root=data_root, split="train"),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CUB", data_root=data_root, split="test", test_mode=True),
)
test_dataloader = val_dataloader
