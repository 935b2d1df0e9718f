"""YOLOX-nano with ReLU6, which quantises to int8 and is free on a device, in the place of Swish."""

_base_ = "./yolox_nano_coco.py"

model = dict(
    backbone=dict(act_cfg=dict(type="ReLU6")),
    neck=dict(act_cfg=dict(type="ReLU6")),
    bbox_head=dict(act_cfg=dict(type="ReLU6")),
)
