"""NetAug and distillation, of both passes."""

_base_ = "./micro_netaug.py"

model = dict(
    model=dict(
        _delete_=True,
        type="mmnetaug.Distilled",
        model={{_base_.model.model}},
        teacher="configs/study/teacher.py",
        teacher_checkpoint="work_dirs/study/teacher/0/epoch_20_tiny.pth",
    )
)
