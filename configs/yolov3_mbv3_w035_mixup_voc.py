"""Detection mixup, which the paper finds to hurt tiny networks (figure 5); otherwise as without it."""

_base_ = ["./_base_/yolov3_mbv3_w035.py", "./_base_/voc_mixup.py"]

model = dict(bbox_head=dict(num_classes=20))
