"""The authors' image pipeline at 176 pixels."""

_base_ = "../runtime.py"

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=176, backend="pillow"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="ColorJitter", brightness=32 / 255, saturation=0.5),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ResizeEdge", scale=202, edge="short", backend="pillow"),  # 176 / 0.875
    dict(type="CenterCrop", crop_size=176),
    dict(type="PackInputs"),
]
