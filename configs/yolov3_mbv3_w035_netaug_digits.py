"""The demo: a tiny YOLOv3 learns handwritten digits on 160x160 scenes with NetAug, in minutes on two CPU cores."""

_base_ = "./yolov3_mbv3_w035_digits.py"

model = dict(
    _delete_=True,
    type="mmnetaug.NetAug",
    model={{_base_.model}},
    # Smaller than the authors' factors, which cost twice as much on a CPU: the demo is to end in minutes.
    expand=[1, 1.5, 2],
    width=[1, 1.5, 2],
)
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook"))
