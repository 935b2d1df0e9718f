"""ProxylessNAS-Mobile at width 0.35."""

_base_ = "../pipelines/r160.py"

model = dict(
    type="ImageClassifier",
    backbone=dict(type="mmnetaug.TinyNet", arch="proxyless_mobile", widen_factor=0.35),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=1280,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
        init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02),
    ),
)
