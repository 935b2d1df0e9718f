"""ResNet-18 at half width on a tenth of the images, which it over-fits: the control, where NetAug should not help."""

_base_ = "./_base_.py"

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=18, stem_channels=32, base_channels=32),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=256, loss=dict(type="CrossEntropyLoss")),
)
train_dataloader = dict(dataset=dict(images_per_class=500))
