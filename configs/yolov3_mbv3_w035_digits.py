"""The demo's plain twin: handwritten digits on 160x160 scenes, minutes of training on a CPU.

It also measures the tiny network of a NetAug run: the two have the same parameters.
"""

_base_ = ["./_base_/yolov3_mbv3_w035.py", "./_base_/digits_training.py"]

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
