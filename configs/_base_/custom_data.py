# A user's own data in Pascal VOC, COCO or YOLO layout:
#     python tools/train.py configs/yolov3_mbv3_w035_netaug_custom.py --data-root /path/to/data
# mmnetaug.datasets.fill_config finds the layout and completes what is missing below: the files of the splits, the class
# names, num_classes of the head and the evaluators.
data_layout = "auto"
data_root = "data/custom"
classes = None  # read from the annotations; or name them: --cfg-options classes="cat,dog"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),
    dict(type="mmnetaug.TrainOnDifficult"),
    # photos are large: everything after this resize costs a fraction of what it would before it
    dict(type="mmdet.Resize", scale=(416, 416), keep_ratio=True),
    dict(type="mmdet.PhotoMetricDistortion"),
    dict(type="mmdet.Expand", mean=[123.675, 116.28, 103.53], to_rgb=True, ratio_range=(1, 2), prob=0.5),
    dict(type="mmnetaug.MinIoURandomCrop", min_ious=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9), min_crop_size=0.3),
    dict(type="mmdet.Resize", scale=(416, 416), keep_ratio=True),
    dict(type="mmdet.RandomFlip", prob=0.5),
    # what lay outside of its image has no area left, and YOLOv3 no cell for it
    dict(type="mmdet.FilterAnnotations", min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type="mmdet.PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.Resize", scale=(416, 416), keep_ratio=True),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),
    dict(type="mmdet.PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="mmnetaug.VOCLayoutDataset",  # or mmdet.CocoDataset, as found
        filter_cfg=dict(filter_empty_gt=False),  # images without objects teach what is none
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="mmnetaug.VOCLayoutDataset", test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="mmdet.VOCMetric", metric="mAP", eval_mode="area")  # or mmdet.CocoMetric
test_evaluator = val_evaluator
