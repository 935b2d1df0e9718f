"""Your own data: RTMDet on MobileNetV3 w1.0, the teacher of rtmdet_mbv3_w035_kd_custom.py."""

_base_ = "./rtmdet_mbv3_w035_custom.py"

model = dict(backbone=dict(widen_factor=1.0), neck=dict(in_channels=[40, 112, 160]))
