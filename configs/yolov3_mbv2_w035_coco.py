"""Plain fine-tuning, as for the paper's detection rows: ``load_from`` a tiny network pre-trained as a classifier.

python tools/train.py configs/yolov3_mbv2_w035_coco.py --cfg-options load_from=PATH
"""

_base_ = ["./_base_/yolov3_mbv2_w035.py", "./_base_/coco.py"]

model = dict(bbox_head=dict(num_classes=80))
