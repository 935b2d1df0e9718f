"""The digits' tiny RTMDet, which also learns from the wide one of the same seed (load_from: cut from it)."""

_base_ = "../rtmdet_mbv3_w035_digits.py"

model = dict(
    _delete_=True,
    type="mmnetaug.Distilled",
    model={{_base_.model}},
    teacher="configs/study/digits_wide.py",
    teacher_checkpoint="work_dirs/study/digits_wide/0/epoch_7_tiny.pth",
)
