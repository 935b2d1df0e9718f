"""Pre-training of the detectors' backbone with NetAug: the paper's use of it."""

_base_ = "./pretrain.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    expand=[1, 1.6, 2.2, 2.8],
    width=[1, 2, 3],
    input_size=64,
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(
    netaug_schedule=dict(type="mmnetaug.NetAugScheduleHook", width_until=0.5),
    channel_sort=dict(type="mmnetaug.ChannelSortHook"),
    checkpoint=dict(type="mmnetaug.TinyCheckpointHook"),
)
