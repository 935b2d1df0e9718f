"""MobileNetV2 at width 0.35 on Food-101; dropout and learning rate are the authors'."""

_base_ = ["../_base_/networks/mobilenet_v2_w035.py", "../_base_/datasets/food101.py"]

model = dict(head=dict(type="mmnetaug.DropoutClsHead", num_classes=101, dropout=0.2))
optim_wrapper = dict(optimizer=dict(lr=0.4))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
