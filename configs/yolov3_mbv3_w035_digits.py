"""The demo's plain twin: handwritten digits on 160x160 scenes, minutes of training on a CPU.

It also measures the tiny network of a NetAug run: the two have the same parameters.
"""

_base_ = ["./_base_/yolov3_mbv3_w035.py", "./_base_/digits_data.py", "mmdet::_base_/default_runtime.py"]

model = dict(
    data_preprocessor=dict(batch_augments=None),  # one size
    bbox_head=dict(
        num_classes=10,
        anchor_generator=dict(  # k-means over the training boxes
            base_sizes=[
                [(33, 53), (39, 61), (48, 68)],
                [(24, 36), (22, 46), (29, 44)],
                [(13, 27), (17, 27), (20, 32)],
            ],
        ),
    ),
)

# From scratch in minutes: Adam with one short warm-up and a cosine to zero.
train_dataloader = dict(batch_size=16)
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=15, val_interval=5)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True, begin=0, end=15, T_max=15, eta_min=0),
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=20))
