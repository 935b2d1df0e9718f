"""A tiny RTMDet on COCO. ``load_from`` a tiny network pre-trained as a classifier.

python tools/train.py configs/rtmdet_mcunet_coco.py --cfg-options load_from=PATH
"""

_base_ = ["./_base_/rtmdet_mcunet.py", "./_base_/rtmdet_coco.py"]

model = dict(bbox_head=dict(num_classes=80))
