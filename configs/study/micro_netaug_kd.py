"""NetAug and distillation, of both passes."""

_base_ = "./micro_netaug.py"

model = dict(
    model=dict(
        type="mmnetaug.DistilledClassifier",
        teacher="configs/study/teacher.py",
        teacher_checkpoint="work_dirs/study/teacher/0/epoch_20_tiny.pth",
    )
)
