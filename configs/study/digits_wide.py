"""The digits' RTMDet on MobileNetV3 w1.0: the teacher of digits_taught.py."""

_base_ = "../rtmdet_mbv3_w035_digits.py"

model = dict(backbone=dict(widen_factor=1.0), neck=dict(in_channels=[40, 112, 160]))
