"""ProxylessNAS-Mobile."""

_base_ = ["../_base_/networks/proxyless_w100.py", "../_base_/datasets/imagenet.py"]

train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
