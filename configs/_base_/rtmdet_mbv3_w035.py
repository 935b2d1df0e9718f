_base_ = "./rtmdet.py"

model = dict(
    backbone=dict(type="mmnetaug.TinyNet", arch="mobilenet_v3_large", widen_factor=0.35, out_indices=(2, 4, 5)),
    neck=dict(in_channels=[16, 40, 56]),
)
