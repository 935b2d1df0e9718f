"""NetAug during detector training: not in the paper, which uses it for pre-training only."""

_base_ = "./yolov3_mbv2_w035_coco.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    expand=[1, 1.6, 2.2, 2.8],  # the authors' factors for pre-training
    width=[1, 1.8, 2.6],
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook"))
