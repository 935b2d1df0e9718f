"""MobileNetV2-Tiny on Food-101; dropout and learning rate are the authors'."""

_base_ = ["../_base_/networks/mobilenet_v2_tiny.py", "../_base_/datasets/food101.py"]

model = dict(head=dict(type="mmnetaug.DropoutClsHead", num_classes=101, dropout=0.1))
optim_wrapper = dict(optimizer=dict(lr=0.24))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
