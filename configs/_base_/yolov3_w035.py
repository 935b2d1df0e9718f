"""YOLOv3 with depthwise-separable convolutions, scaled to 0.35 of its widths. Who inherits adds the backbone."""

custom_imports = dict(imports=["mmnetaug"])

model = dict(
    type="YOLOV3",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],  # of ImageNet, on which the backbones are pre-trained
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        batch_augments=[  # multi-scale training: another size every 10 iterations, the same on all GPUs
            dict(type="BatchSyncRandomResize", random_size_range=(320, 608), size_divisor=32, interval=10)
        ],
    ),
    neck=dict(
        type="mmnetaug.DepthwiseYOLOV3Neck",
        num_scales=3,
        out_channels=[176, 88, 48],  # [512, 256, 128] x 0.35
    ),
    bbox_head=dict(
        type="mmnetaug.DepthwiseYOLOV3Head",
        in_channels=[176, 88, 48],
        out_channels=[352, 176, 96],  # twice the neck's, as in YOLOv3
        anchor_generator=dict(
            type="YOLOAnchorGenerator",
            base_sizes=[
                [(116, 90), (156, 198), (373, 326)],
                [(30, 61), (62, 45), (59, 119)],
                [(10, 13), (16, 30), (33, 23)],
            ],
            strides=[32, 16, 8],
        ),
        bbox_coder=dict(type="YOLOBBoxCoder"),
        featmap_strides=[32, 16, 8],
        # The paper names no loss. These are GluonCV's, the code base that its recipe points to: cross-entropy for
        # class, objectness and centre, L1 for the logarithm of the size, summed over an image, averaged over images
        # (the head does that). mmdet's own YOLOv3 takes squared errors for the size, which a single box of unusual
        # shape dominates, and sums over the images of a GPU, which needs gradient clipping at lr 0.003. Coordinates
        # weigh 2 (mmdet); GluonCV's weight falls from 2 to 1 as boxes grow.
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, reduction="sum"),
        loss_conf=dict(type="CrossEntropyLoss", use_sigmoid=True, reduction="sum"),
        loss_xy=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=2.0, reduction="sum"),
        loss_wh=dict(type="L1Loss", loss_weight=2.0, reduction="sum"),
    ),
    train_cfg=dict(
        assigner=dict(
            type="GridAssigner",
            # mmdet's rule, by anchors: each object's best one and all above 0.5 are to find it, those above 0.7 are no
            # negatives. GluonCV has the best one alone find it, and exempts *predicted* boxes above 0.7.
            pos_iou_thr=0.5,
            neg_iou_thr=0.7,
            min_pos_iou=0,
        )
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.01,  # GluonCV; mmdet's 0.05 cuts off the end of the precision-recall curve
        conf_thr=0.005,
        nms=dict(type="nms", iou_threshold=0.45),
        max_per_img=100,
    ),
)
