"""Handwritten digits on 160x160 scenes: a tiny RTMDet on MobileNetV3 w0.35, in minutes on a CPU."""

_base_ = ["./_base_/rtmdet_mbv3_w035.py", "./_base_/digits_training.py"]

model = dict(
    data_preprocessor=dict(batch_augments=None),  # one size
    bbox_head=dict(
        num_classes=10,
        loss_cls=dict(loss_weight=3.0),  # finding the digits is learnt at once, telling them apart takes time
    ),
)
