"""With NetAug; the tiny network starts exactly as without."""

_base_ = "./mobilenet_v2_tiny_cifar10.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    expand=[1, 1.6, 2.2, 2.8],
    width=[1, 1.8, 2.6],
    input_size=64,
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(
    netaug_schedule=dict(type="mmnetaug.NetAugScheduleHook", width_until=0.5, by_epoch=False),
    checkpoint=dict(type="mmnetaug.TinyCheckpointHook"),
)
