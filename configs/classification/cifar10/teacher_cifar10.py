"""A small ResNet-18, the teacher of the two configs with ``kd`` in their name."""

_base_ = "./_base_.py"

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=18, base_channels=16, stem_channels=16),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=128, loss=dict(type="CrossEntropyLoss")),
)
train_cfg = dict(max_epochs=3)
