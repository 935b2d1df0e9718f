"""A micro MobileNetV2, plainly trained."""

_base_ = "./_base_.py"

model = dict(
    type="ImageClassifier",
    backbone=dict(type="mmnetaug.TinyNet", arch="micro"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=64, loss=dict(type="CrossEntropyLoss")),
)
