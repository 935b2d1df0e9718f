"""MCUNet on Stanford Cars; dropout and learning rate are the authors'."""

_base_ = ["../_base_/networks/mcunet.py", "../_base_/datasets/cars.py"]

model = dict(head=dict(type="mmnetaug.DropoutClsHead", num_classes=196, dropout=0.1))
optim_wrapper = dict(optimizer=dict(lr=1.0))
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
