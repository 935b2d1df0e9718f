"""digits_narrow.py, which also learns from the wide detector of the same seed (load_from: cut from it)."""

_base_ = "./digits_narrow.py"

model = dict(
    _delete_=True,
    type="mmnetaug.Distilled",
    model={{_base_.model}},
    teacher="configs/study/digits_narrow_wide.py",
    teacher_checkpoint="work_dirs/study/digits_narrow/wide_28_0/epoch_28_tiny.pth",
)
