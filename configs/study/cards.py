"""Playing cards (VOC layout, 296 photos to train on, 67 to test) at 192 pixels: the study's detectors, plain."""

_base_ = "../yolov3_mbv3_w035_custom.py"

custom_imports = dict(imports=["mmnetaug", "benchmarks.study_parts"])

input_size = (192, 192)
model = dict(bbox_head=dict(num_classes=6, loss_cls=dict(loss_weight=5.0)))  # to tell them apart takes longest

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),
    dict(type="mmdet.Resize", scale=input_size, keep_ratio=True),
    dict(type="mmdet.PhotoMetricDistortion"),
    dict(type="mmdet.Expand", mean=[123.675, 116.28, 103.53], to_rgb=True, ratio_range=(1, 1.5), prob=0.5),
    dict(type="mmdet.Resize", scale=input_size, keep_ratio=True),
    dict(type="mmdet.RandomShift", prob=0.5, max_shift_px=24),
    dict(type="mmdet.RandomFlip", prob=0.5),
    dict(type="mmdet.Pad", size=input_size),
    dict(type="mmdet.PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.Resize", scale=input_size, keep_ratio=True),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),
    dict(type="mmdet.PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(batch_size=8, num_workers=1, drop_last=True, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=40, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True, eta_min=0),
]
default_hooks = dict(
    train_accuracy=dict(type="mmnetaug.TrainAccuracyHook", images=100),
    checkpoint=dict(interval=10, max_keep_ckpts=1, save_best=None),
)
randomness = dict(seed=0)
