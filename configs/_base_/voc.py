"""Pascal VOC: trained on 07+12 trainval, tested on 07 test with the 11-point AP50 of VOC 2007."""

_base_ = ["mmdet::_base_/default_runtime.py", "./pipelines.py"]

data_root = "data/VOCdevkit/"


# Not mmdet's voc0712.py: it repeats the data, so that an epoch is three, and ignores objects under 32 pixels.
train_dataloader = dict(
    batch_size=8,  # x 8 GPUs
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="ConcatDataset",
        ignore_keys=["dataset_type"],  # the one thing in which the metadata of the two years differ
        datasets=[
            dict(
                type="VOCDataset",
                data_root=data_root,
                ann_file="VOC2007/ImageSets/Main/trainval.txt",
                data_prefix=dict(sub_data_root="VOC2007/"),
                filter_cfg=dict(filter_empty_gt=True),
                pipeline={{_base_.train_pipeline}},
            ),
            dict(
                type="VOCDataset",
                data_root=data_root,
                ann_file="VOC2012/ImageSets/Main/trainval.txt",
                data_prefix=dict(sub_data_root="VOC2012/"),
                filter_cfg=dict(filter_empty_gt=True),
                pipeline={{_base_.train_pipeline}},
            ),
        ],
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="VOCDataset",
        data_root=data_root,
        ann_file="VOC2007/ImageSets/Main/test.txt",
        data_prefix=dict(sub_data_root="VOC2007/"),
        test_mode=True,
        pipeline={{_base_.test_pipeline}},
    ),
)
test_dataloader = val_dataloader

# With one IoU threshold, "mAP" is AP50 in full precision; "AP50" is rounded to three decimals.
val_evaluator = dict(type="VOCMetric", iou_thrs=0.5, eval_mode="11points")
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=200, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# The paper gives batch and epochs; learning rate, decay and steps are GluonCV's for VOC.
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=1e-3, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, milestones=[160, 180], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=64)  # so that fewer GPUs or images need no other learning rate

default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1, save_best="pascal_voc/mAP"))
