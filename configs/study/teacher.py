"""The micro MobileNetV2 three times as wide: the teacher of the distilled runs."""

_base_ = "./micro.py"

model = dict(backbone=dict(widen_factor=3.0), head=dict(in_channels=192))
