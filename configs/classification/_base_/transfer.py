"""Fine-tuning of a network pre-trained on ImageNet: 50 epochs and 5 of warm-up, 4 GPUs with 64 images each.

The pre-trained tiny network is given on the command line: ``--cfg-options load_from=PATH``.
"""

_base_ = "./schedule.py"

train_cfg = dict(by_epoch=True, max_epochs=55, val_interval=5)
auto_scale_lr = dict(enable=True, base_batch_size=256)
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
