"""A tiny RTMDet on Pascal VOC. ``load_from`` a tiny network pre-trained as a classifier.

python tools/train.py configs/rtmdet_mbv3_w035_voc.py --cfg-options load_from=PATH
"""

_base_ = ["./_base_/rtmdet_mbv3_w035.py", "./_base_/rtmdet_voc.py"]

model = dict(bbox_head=dict(num_classes=20))
