_base_ = "./rtmdet.py"

model = dict(
    backbone=dict(type="mmnetaug.TinyNet", arch="mcunet", out_indices=(2, 4, 5)),
    neck=dict(in_channels=[24, 48, 96], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64),
)
