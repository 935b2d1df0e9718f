_base_ = "./rtmdet.py"

model = dict(
    backbone=dict(type="mmnetaug.MobileNetV2", widen_factor=0.35, out_indices=(2, 4, 5)),
    neck=dict(in_channels=[16, 32, 56]),
)
