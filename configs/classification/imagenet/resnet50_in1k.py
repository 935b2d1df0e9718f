"""ResNet50, the control: too large to under-fit."""

_base_ = ["../_base_/networks/resnet50.py", "../_base_/datasets/imagenet.py"]

train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
