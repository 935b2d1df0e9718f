# Handwritten digits on 160x160 scenes, written to data/digits at first use (mmnetaug/demo/digits.py).
data_root = "data/digits"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),
    # no flip: a mirrored digit is none. The scenes are as large as the network's input, so nothing is resized.
    dict(type="mmdet.RandomShift", prob=0.5, max_shift_px=16, filter_thr_px=8),
    dict(type="mmdet.PhotoMetricDistortion"),
    dict(type="mmdet.PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.Resize", scale=(160, 160), keep_ratio=True),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),  # behind Resize: boxes are compared at the image's own size
    dict(type="mmdet.PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=1,  # one process keeps up with training on two CPU cores, and leaves them to it
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="mmnetaug.DigitScenes", data_root=data_root, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="mmnetaug.DigitScenes", data_root=data_root, split="test", test_mode=True, pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader

# mAP is AP50 unrounded (one IoU threshold); AP50 itself is rounded to three decimals
val_evaluator = dict(type="mmdet.VOCMetric", metric="mAP", eval_mode="area")
test_evaluator = val_evaluator
