"""Oxford 102 Flowers, 102 classes."""

_base_ = "../transfer.py"

data_root = "data/Flowers102"

train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="Flowers102", data_root=data_root, split="trainval"),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="Flowers102", data_root=data_root, split="test"),
)
test_dataloader = val_dataloader
