"""RandAugment (N=2, M=9), 300 epochs; N=1: ``--cfg-options train_dataloader.dataset.pipeline.3.num_policies=1``."""

_base_ = "../imagenet/mobilenet_v2_tiny_in1k.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=144, backend="pillow"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandAugment", policies="timm_increasing", num_policies=2, magnitude_level=9),
    dict(type="ColorJitter", brightness=32 / 255, saturation=0.5),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=305)
