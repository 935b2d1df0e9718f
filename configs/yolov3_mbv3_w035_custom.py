"""Your own data in Pascal VOC or COCO layout, with the plain tiny network.

python tools/train.py configs/yolov3_mbv3_w035_custom.py --data-root PATH
"""

_base_ = ["./_base_/yolov3_mbv3_w035.py", "./_base_/custom_data.py", "./_base_/custom_training.py"]

model = dict(
    data_preprocessor=dict(batch_augments=None),  # one scale: batches keep the shape of the photos
    bbox_head=dict(num_classes=1),  # set to the number of classes in the data
)
