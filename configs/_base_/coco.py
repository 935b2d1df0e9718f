"""COCO 2017: trained on train2017, tested on val2017."""

_base_ = ["mmdet::_base_/default_runtime.py", "./pipelines.py"]

data_root = "data/coco/"

train_dataloader = dict(
    batch_size=8,  # x 16 GPUs
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CocoDataset",
        data_root=data_root,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline={{_base_.train_pipeline}},
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDataset",
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
        pipeline={{_base_.test_pipeline}},
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="CocoMetric", ann_file=data_root + "annotations/instances_val2017.json", metric="bbox")
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=120, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# The paper gives batch and epochs. The learning rate is GluonCV's 1e-3 for 64 images, scaled to 128.
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=2e-3, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, milestones=[96, 108], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=128)  # so that fewer GPUs or images need no other learning rate

default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1, save_best="coco/bbox_mAP_50"))
