"""MobileNetV2-Tiny."""

_base_ = "../pipelines/r144.py"

model = dict(
    type="ImageClassifier",
    backbone=dict(type="mmnetaug.TinyNet", arch="mobilenet_v2_tiny"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=448,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
        init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02),
    ),
)
