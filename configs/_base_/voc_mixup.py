"""Pascal VOC with detection mixup: two images, each prepared as without it, are blended before they are packed.

The paper gives no settings: shares are drawn from Beta(1.5, 1.5), as in Zhang et al., 2019, to the last epoch.
"""

_base_ = "./voc.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="mmnetaug.TrainOnDifficult"),
    dict(type="PhotoMetricDistortion"),
    dict(type="Expand", mean=[123.675, 116.28, 103.53], to_rgb=True, ratio_range=(1, 4)),
    dict(type="mmnetaug.MinIoURandomCrop", min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
    dict(type="Resize", scale=(608, 608), keep_ratio=False),
    dict(type="RandomFlip", prob=0.5),
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="MultiImageMixDataset",
        dataset=dict(
            type="ConcatDataset",
            ignore_keys=["dataset_type"],
            datasets=[
                dict(
                    type="VOCDataset",
                    data_root={{_base_.data_root}},
                    ann_file=f"VOC{year}/ImageSets/Main/trainval.txt",
                    data_prefix=dict(sub_data_root=f"VOC{year}/"),
                    filter_cfg=dict(filter_empty_gt=True),
                    pipeline=train_pipeline,
                )
                for year in (2007, 2012)
            ],
        ),
        pipeline=[dict(type="mmnetaug.DetectionMixUp", alpha=1.5), dict(type="mmnetaug.PackMixedDetInputs")],
    )
)
