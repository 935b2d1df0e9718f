"""The authors' image pipeline at 160 pixels."""

_base_ = "../runtime.py"

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=160, backend="pillow"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="ColorJitter", brightness=32 / 255, saturation=0.5),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=183, edge="short", backend="pillow"),  # 160 / 0.875
    dict(type="CenterCrop", crop_size=160),
    dict(type="PackInputs"),
]
