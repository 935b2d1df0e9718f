"""With NetAug and knowledge distillation, of both passes."""

_base_ = "./mobilenet_v2_tiny_netaug_cifar10.py"

model = dict(
    model=dict(
        _delete_=True,
        type="mmnetaug.Distilled",
        model={{_base_.model.model}},
        teacher="configs/classification/cifar10/teacher_cifar10.py",
        teacher_checkpoint="work_dirs/teacher_cifar10/epoch_3_tiny.pth",
    )
)
