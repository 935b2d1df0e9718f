"""The demo's plain twin: handwritten digits on 160x160 scenes, minutes of training on a CPU.

It also measures the tiny network of a NetAug run: the two have the same parameters.
"""

_base_ = ["./_base_/yolov3_mbv3_w035.py", "./_base_/digits_data.py", "mmdet::_base_/default_runtime.py"]

# Chosen so that a tiny network learns in minutes, from scratch.
model = dict(
    data_preprocessor=dict(batch_augments=None),  # one size
    bbox_head=dict(
        num_classes=10,
        anchor_generator=dict(base_sizes=[[(46, 70)], [(33, 52)], [(23, 38)]]),  # k-means over the training boxes
        loss_cls=dict(loss_weight=10.0),  # finding the digits is learnt at once, telling them apart takes time
    ),
    train_cfg=dict(assigner=dict(pos_iou_thr=0.3)),  # a single anchor a level: more of them learn from each digit
)

train_dataloader = dict(batch_size=8)
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=7, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=5e-3, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True, begin=0, end=7, T_max=7, eta_min=0),
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=20))
custom_hooks = [dict(type="mmnetaug.CPUTuningHook")]
randomness = dict(seed=0)
