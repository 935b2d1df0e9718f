"""Your own data in Pascal VOC or COCO layout, with NetAug.

python tools/train.py configs/rtmdet_mcunet_netaug_custom.py --data-root PATH
"""

_base_ = "./rtmdet_mcunet_custom.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    expand=[1, 1.6, 2.2, 2.8],  # the authors' factors for pre-training
    width=[1, 1.6, 2.2],
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook"))
