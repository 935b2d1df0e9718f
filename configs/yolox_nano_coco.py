"""mmdet's YOLOX-nano and its recipe for tiny networks: mosaic at half the range of scales, no mixup."""

_base_ = "mmdet::yolox/yolox_nano_8xb8-300e_coco.py"

custom_imports = dict(imports=["mmnetaug"])
