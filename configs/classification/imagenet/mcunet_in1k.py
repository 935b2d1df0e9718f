"""MCUNet, on 32 GPUs with 64 images each."""

_base_ = ["../_base_/networks/mcunet.py", "../_base_/datasets/imagenet.py"]

train_dataloader = dict(batch_size=64, dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
