"""RTMDet of depthwise-separable convolutions, in a size for microcontrollers. Who inherits adds the backbone.

Lyu et al., "RTMDet", 2022; neck, head and assigner are mmdet's own, but for how the head starts (docs/detectors.md).
"""

custom_imports = dict(imports=["mmnetaug"])

model = dict(
    type="RTMDet",
    use_syncbn=False,  # as in the other configs, and on several CPU processes there is no SyncBN
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],  # of ImageNet, on which the backbones are pre-trained
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        batch_augments=[  # as in the other detectors: another size every 10 iterations, the same on all GPUs
            dict(type="BatchSyncRandomResize", random_size_range=(320, 608), size_divisor=32, interval=10)
        ],
    ),
    neck=dict(
        type="CSPNeXtPAFPN",
        out_channels=48,
        num_csp_blocks=1,
        use_depthwise=True,
        act_cfg=dict(type="ReLU6"),  # not SiLU: TFLite fuses ReLU6 into the convolution
    ),
    bbox_head=dict(
        type="mmnetaug.SizedRTMDetHead",
        in_channels=48,
        feat_channels=48,
        stacked_convs=2,
        use_depthwise=True,
        # RTMDet shares the head's convolutions between levels. mmdet cannot when they are depthwise-separable: it
        # assigns `.conv`, which such a module does not have. It saves no MACs.
        share_conv=False,
        with_objectness=False,
        # mmdet draws the head's weights with a deviation of 0.01. Behind a depthwise convolution its own eps, 0.001, is
        # more than the variance that this leaves, and the features fade from layer to layer.
        norm_cfg=dict(type="BN"),
        act_cfg=dict(type="ReLU6"),
        anchor_generator=dict(type="MlvlPointGenerator", offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type="DistancePointBBoxCoder"),
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
    ),
    train_cfg=dict(assigner=dict(type="DynamicSoftLabelAssigner", topk=13), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.001,
        nms=dict(type="nms", iou_threshold=0.5),  # for AP50; RTMDet's 0.65 is for COCO's AP
        max_per_img=100,
    ),
)
