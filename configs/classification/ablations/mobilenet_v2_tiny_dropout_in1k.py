"""Dropout with keep probability 0.9 in front of the classifier; 0.8: ``--cfg-options model.head.dropout=0.2``."""

_base_ = "../imagenet/mobilenet_v2_tiny_in1k.py"

model = dict(head=dict(type="mmnetaug.DropoutClsHead", dropout=0.1))
