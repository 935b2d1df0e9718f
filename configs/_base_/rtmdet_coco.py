"""COCO as for the paper's detectors: data, sizes, batch and epochs. Optimizer and schedule are RTMDet's."""

_base_ = "./coco.py"

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=2e-3, weight_decay=0.05),  # RTMDet: 4e-3 for 256 images
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True, begin=60, T_max=60, eta_min=1e-4),
]
