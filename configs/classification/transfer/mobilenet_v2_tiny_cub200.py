"""MobileNetV2-Tiny on CUB-200-2011; dropout and learning rate are the authors'."""

_base_ = ["../_base_/networks/mobilenet_v2_tiny.py", "../_base_/datasets/cub200.py"]

model = dict(head=dict(type="mmnetaug.DropoutClsHead", num_classes=200, dropout=0.5))
optim_wrapper = dict(optimizer=dict(lr=0.16))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
