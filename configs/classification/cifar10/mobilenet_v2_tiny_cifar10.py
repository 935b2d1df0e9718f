"""MobileNetV2-Tiny, plainly trained."""

_base_ = "./_base_.py"

model = dict(
    type="ImageClassifier",
    backbone=dict(type="mmnetaug.TinyNet", arch="mobilenet_v2_tiny"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=448, loss=dict(type="CrossEntropyLoss")),
)
