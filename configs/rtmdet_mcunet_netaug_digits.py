"""Handwritten digits on 160x160 scenes, with NetAug."""

_base_ = "./rtmdet_mcunet_digits.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    # far below the authors' factors, so that a CPU is done in minutes
    expand=[1, 1.5],
    width=[1, 1.5],
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook"))
