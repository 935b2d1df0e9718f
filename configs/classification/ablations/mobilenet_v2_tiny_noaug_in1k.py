"""No augmentation: training images are prepared as test images are."""

_base_ = "../imagenet/mobilenet_v2_tiny_in1k.py"

train_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
