"""With NetAug, as the authors train it: see the README beside."""

_base_ = "./mobilenet_v2_tiny_in1k.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    expand=[1, 1.6, 2.2, 2.8],
    width=[1, 1.8, 2.6],
    init="authors",
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(
    netaug_schedule=dict(type="mmnetaug.NetAugScheduleHook", width_until=0.5),
    channel_sort=dict(type="mmnetaug.ChannelSortHook"),
    checkpoint=dict(type="mmnetaug.TinyCheckpointHook"),
)
