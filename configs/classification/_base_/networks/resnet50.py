"""ResNet50, the control: too large to under-fit, as mmpretrain has it."""

_base_ = "../pipelines/r224.py"

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=50),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=2048,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
        init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02),
    ),
)
