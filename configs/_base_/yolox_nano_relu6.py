"""YOLOX-nano of mmdet with ReLU6, which TFLite fuses into the convolution, in place of Swish."""

custom_imports = dict(imports=["mmnetaug"])

model = dict(
    type="YOLOX",
    data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32),
    backbone=dict(
        type="CSPDarknet", deepen_factor=0.33, widen_factor=0.25, use_depthwise=True, act_cfg=dict(type="ReLU6")
    ),
    neck=dict(
        type="YOLOXPAFPN",
        in_channels=[64, 128, 256],
        out_channels=64,
        num_csp_blocks=1,
        use_depthwise=True,
        act_cfg=dict(type="ReLU6"),
    ),
    bbox_head=dict(type="YOLOXHead", in_channels=64, feat_channels=64, use_depthwise=True, act_cfg=dict(type="ReLU6")),
    train_cfg=dict(assigner=dict(type="SimOTAAssigner", center_radius=2.5)),
    test_cfg=dict(score_thr=0.001, nms=dict(type="nms", iou_threshold=0.65)),
)
