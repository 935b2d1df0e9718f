"""The micro MobileNetV2, distilled from the study's teacher."""

_base_ = "./micro.py"

model = dict(
    _delete_=True,
    type="mmnetaug.Distilled",
    model={{_base_.model}},
    teacher="configs/study/teacher.py",
    teacher_checkpoint="work_dirs/study/teacher/0/epoch_20_tiny.pth",
)
