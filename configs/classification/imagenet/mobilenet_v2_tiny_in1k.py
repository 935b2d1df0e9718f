"""MobileNetV2-Tiny."""

_base_ = ["../_base_/networks/mobilenet_v2_tiny.py", "../_base_/datasets/imagenet.py"]

train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
