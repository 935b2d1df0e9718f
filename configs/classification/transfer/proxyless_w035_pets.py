"""ProxylessNAS-Mobile at width 0.35 on Oxford-IIIT Pets; dropout and learning rate are the authors'."""

_base_ = ["../_base_/networks/proxyless_w035.py", "../_base_/datasets/pets.py"]

model = dict(head=dict(type="mmnetaug.DropoutClsHead", num_classes=37, dropout=0.8))
optim_wrapper = dict(optimizer=dict(lr=0.04))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
