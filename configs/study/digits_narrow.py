"""The digits at 64x64, found by an RTMDet too narrow for them: where plain training longer no longer helps."""

_base_ = "../rtmdet_mbv3_w035_digits.py"

model = dict(
    backbone=dict(widen_factor=0.1),
    neck=dict(in_channels=[8, 16, 16], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
)
_train = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),
    dict(type="mmdet.Resize", scale=(64, 64), keep_ratio=True),
    dict(type="mmdet.RandomShift", prob=0.5, max_shift_px=6, filter_thr_px=3),
    dict(type="mmdet.PhotoMetricDistortion"),
    dict(type="mmdet.PackDetInputs"),
]
_test = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.Resize", scale=(64, 64), keep_ratio=True),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),
    dict(type="mmdet.PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_train))
val_dataloader = dict(dataset=dict(pipeline=_test))
test_dataloader = val_dataloader
