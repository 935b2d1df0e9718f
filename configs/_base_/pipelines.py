"""Training and test pipelines of YOLOv3, with GluonCV's augmentations."""

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="mmnetaug.TrainOnDifficult"),
    dict(type="PhotoMetricDistortion"),
    dict(type="Expand", mean=[123.675, 116.28, 103.53], to_rgb=True, ratio_range=(1, 4)),
    dict(type="mmnetaug.MinIoURandomCrop", min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
    dict(type="Resize", scale=(608, 608), keep_ratio=False),  # the data preprocessor shrinks whole batches from here
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(416, 416), keep_ratio=False),  # square: the same cost for every image
    dict(type="LoadAnnotations", with_bbox=True),  # behind Resize, so that the boxes stay those of the original image
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
