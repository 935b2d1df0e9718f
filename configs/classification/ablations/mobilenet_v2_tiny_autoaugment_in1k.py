"""AutoAugment with the policies found on ImageNet, 300 epochs."""

_base_ = "../imagenet/mobilenet_v2_tiny_in1k.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=144, backend="pillow"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="AutoAugment", policies="imagenet"),
    dict(type="ColorJitter", brightness=32 / 255, saturation=0.5),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=305)
