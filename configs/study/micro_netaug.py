"""The micro MobileNetV2 with NetAug, as the authors train; the tiny network starts as without it."""

_base_ = "./micro.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    expand=[1, 1.6, 2.2, 2.8],
    width=[1, 1.8, 2.6],
    input_size=32,
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(
    netaug_schedule=dict(type="mmnetaug.NetAugScheduleHook", width_until=0.5),
    channel_sort=dict(type="mmnetaug.ChannelSortHook"),
    checkpoint=dict(type="mmnetaug.TinyCheckpointHook"),
)
