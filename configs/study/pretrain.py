"""Pre-training of the detectors' backbone, MobileNetV3 w0.35, on 10 000 images of CIFAR-10 enlarged to 64 pixels."""

_base_ = "./_base_.py"

data_preprocessor = dict(enlarge=2)
model = dict(
    type="ImageClassifier",
    backbone=dict(type="mmnetaug.TinyNet", arch="mobilenet_v3_large", widen_factor=0.35),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=1280, loss=dict(type="CrossEntropyLoss")),
)
train_dataloader = dict(dataset=dict(images_per_class=1000))
