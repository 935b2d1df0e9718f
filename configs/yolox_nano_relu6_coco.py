"""YOLOX-nano with ReLU6, which TFLite fuses into the convolution, in place of Swish."""

_base_ = "./yolox_nano_coco.py"

model = dict(
    backbone=dict(act_cfg=dict(type="ReLU6")),
    neck=dict(act_cfg=dict(type="ReLU6")),
    bbox_head=dict(act_cfg=dict(type="ReLU6")),
)
