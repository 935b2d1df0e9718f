"""The wide detector that digits_narrow.py is cut from and taught by: RTMDet on MobileNetV3 w0.35, at 64x64."""

_base_ = "./digits_narrow.py"

model = dict(
    backbone=dict(widen_factor=0.35),
    neck=dict(in_channels=[16, 40, 56], out_channels=48),
    bbox_head=dict(in_channels=48, feat_channels=48),
)
