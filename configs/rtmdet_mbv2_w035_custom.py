"""Your own data in Pascal VOC or COCO layout: a tiny RTMDet on MobileNetV2 w0.35 for 192x192, 47 M MACs.

python tools/train.py configs/rtmdet_mbv2_w035_custom.py --data-root PATH
"""

_base_ = ["./_base_/rtmdet_mbv2_w035.py", "./_base_/custom_data.py", "./_base_/custom_training.py"]

model = dict(
    data_preprocessor=dict(batch_augments=None),  # one scale: batches keep the shape of the photos
    bbox_head=dict(num_classes=1),  # set to the number of classes in the data
)

# the data's own pipelines, at the size that this network is meant for
train_pipeline = [{**step, "scale": (192, 192)} if "scale" in step else step for step in _base_.train_pipeline]
test_pipeline = [{**step, "scale": (192, 192)} if "scale" in step else step for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
