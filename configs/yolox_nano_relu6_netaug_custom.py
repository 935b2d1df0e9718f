"""Your own data in Pascal VOC or COCO layout, with NetAug."""

_base_ = "./yolox_nano_relu6_custom.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    expand=[1, 1.6, 2.2, 2.8],  # as for MobileNetV2; not tuned
    width=[1, 1.8, 2.6],
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook"))
