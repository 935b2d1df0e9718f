"""The demo: a tiny YOLOv3 learns handwritten digits on 160x160 scenes with NetAug, in minutes on two CPU cores."""

_base_ = "./yolov3_mbv3_w035_digits.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    # Far below the authors' factors (expand up to 2.8, width up to 3): on a CPU the demo is to end in minutes.
    expand=[1, 1.5],
    width=[1, 1.5],
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook"))
