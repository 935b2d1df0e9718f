"""The digits at 64x64, found by an RTMDet of 1.1 M MACs (benchmarks/wide_start.py)."""

_base_ = "../rtmdet_mbv3_w035_digits.py"

model = dict(
    backbone=dict(widen_factor=0.1),
    neck=dict(in_channels=[8, 16, 16], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),
    dict(type="mmdet.Resize", scale=(64, 64), keep_ratio=True),
    dict(type="mmdet.RandomShift", prob=0.5, max_shift_px=6, filter_thr_px=3),
    dict(type="mmdet.PhotoMetricDistortion"),
    dict(type="mmdet.PackDetInputs"),
]
test_pipeline = [{**step, "scale": (64, 64)} if "scale" in step else step for step in _base_.test_pipeline]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
