"""ProxylessNAS-Mobile at width 0.35 on Stanford Cars; dropout and learning rate are the authors'."""

_base_ = ["../_base_/networks/proxyless_w035.py", "../_base_/datasets/cars.py"]

model = dict(head=dict(type="mmnetaug.DropoutClsHead", num_classes=196, dropout=0.2))
optim_wrapper = dict(optimizer=dict(lr=0.8))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
