"""MixUp with α = 0.2, 300 epochs; 0.1: ``--cfg-options model.train_cfg.augments.alpha=0.1``."""

_base_ = "../imagenet/mobilenet_v2_tiny_in1k.py"

model = dict(train_cfg=dict(augments=dict(type="Mixup", alpha=0.2)))
data_preprocessor = dict(num_classes=1000)
train_cfg = dict(max_epochs=305)
