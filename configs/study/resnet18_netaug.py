"""The control with NetAug; factors as small as can be, since it is large already."""

_base_ = "./resnet18.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    expand=[1, 1.25],
    width=[1, 1.25],
    input_size=32,
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(
    netaug_schedule=dict(type="mmnetaug.NetAugScheduleHook", width_until=0.5),
    checkpoint=dict(type="mmnetaug.TinyCheckpointHook"),
)
