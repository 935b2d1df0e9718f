"""What all of the authors' classifiers are trained with: Nesterov SGD, 5 epochs of warm-up, then a cosine to 0.

Warm-up starts at the rate of one GPU: of 16 in pre-training (of 4 in the authors' fine-tuning, of 16 here too).

Other lengths: ``--cfg-options train_cfg.max_epochs=N``, the 5 epochs of warm-up included.
"""

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.4, momentum=0.9, nesterov=True, weight_decay=4e-5),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 16, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, begin=5, convert_to_iter_based=True),  # to the last epoch
]
val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
