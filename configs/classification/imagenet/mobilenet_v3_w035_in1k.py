"""MobileNetV3-Large at width 0.35."""

_base_ = ["../_base_/networks/mobilenet_v3_w035.py", "../_base_/datasets/imagenet.py"]

optim_wrapper = dict(optimizer=dict(lr=1.6, weight_decay=3e-5))  # the authors' code
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
