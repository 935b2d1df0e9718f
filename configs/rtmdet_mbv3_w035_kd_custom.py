"""Your own data: the tiny RTMDet, which also learns from a wide one, trained by rtmdet_mbv3_w100_custom.py.

python tools/train.py configs/rtmdet_mbv3_w035_kd_custom.py --data-root PATH
"""

_base_ = "./rtmdet_mbv3_w035_custom.py"

model = dict(
    _delete_=True,
    type="mmnetaug.Distilled",
    model={{_base_.model}},
    teacher="work_dirs/rtmdet_mbv3_w100_custom/rtmdet_mbv3_w100_custom.py",  # as the run has written it
    teacher_checkpoint="work_dirs/rtmdet_mbv3_w100_custom/epoch_100_tiny.pth",
)
