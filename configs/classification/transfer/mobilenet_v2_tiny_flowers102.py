"""MobileNetV2-Tiny on Oxford 102 Flowers; dropout and learning rate are the authors'."""

_base_ = ["../_base_/networks/mobilenet_v2_tiny.py", "../_base_/datasets/flowers102.py"]

model = dict(head=dict(type="mmnetaug.DropoutClsHead", num_classes=102, dropout=0))
optim_wrapper = dict(optimizer=dict(lr=0.32))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
