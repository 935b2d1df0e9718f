"""MobileNetV2-Tiny."""

_base_ = ["../_base_/networks/mobilenet_v2_tiny.py", "../_base_/datasets/imagenet21k_p.py"]

model = dict(head=dict(num_classes=10450))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
