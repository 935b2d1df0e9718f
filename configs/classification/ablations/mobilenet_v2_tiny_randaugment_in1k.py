"""RandAugment (N=2, M=9), 300 epochs; N=1: ``--cfg-options train_dataloader.dataset.pipeline.3.num_policies=1``.

The operations are those of timm's ``rand-m9-n2``, which the paper names (appendix A), at magnitude 9. mmpretrain's
"timm_increasing" is ``rand-m9-n2-inc1``, in which a larger magnitude always means a stronger operation.
"""

_base_ = "../imagenet/mobilenet_v2_tiny_in1k.py"

policies = [
    dict(type="AutoContrast"),
    dict(type="Equalize"),
    dict(type="Invert"),
    dict(type="Rotate", magnitude_range=(0, 30)),
    dict(type="Posterize", bits=3),
    dict(type="Solarize", thr=230),
    dict(type="SolarizeAdd", magnitude_range=(0, 110)),
    *(
        dict(type=name, magnitude=0.72, random_negative_prob=0.0)
        for name in ("ColorTransform", "Contrast", "Brightness", "Sharpness")
    ),
    *(
        dict(type=name, magnitude_range=(0, largest), direction=direction)
        for name, largest in (("Shear", 0.3), ("Translate", 0.45))
        for direction in ("horizontal", "vertical")
    ),
]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=144, backend="pillow"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandAugment", policies=policies, num_policies=2, magnitude_level=9),
    dict(type="ColorJitter", brightness=32 / 255, saturation=0.5),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=305)
