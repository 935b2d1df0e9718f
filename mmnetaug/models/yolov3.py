"""mmdet's YOLOv3 neck and head with depthwise-separable convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmdet.models import YOLOV3Head, YOLOV3Neck
from mmdet.utils import InstanceList, OptInstanceList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmnetaug.registry import MODELS


def separate_convs(module: nn.Module) -> None:
    """Replaces every k x k ``ConvModule`` (k > 1) below ``module`` by a depthwise-separable one with its norm and act.

    Works in place; the new layers start as mmcv initialises them (He normal, fan-out).
    """
    for name, child in module.named_children():
        if isinstance(child, ConvModule) and max(child.conv.kernel_size) > 1:
            conv = child.conv
            separable = DepthwiseSeparableConvModule(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                stride=conv.stride,
                padding=conv.padding,
                norm_cfg=child.norm_cfg,
                act_cfg=child.act_cfg,
            )
            setattr(module, name, separable)
        else:
            separate_convs(child)


@MODELS.register_module()
class DepthwiseYOLOV3Neck(YOLOV3Neck):
    """mmdet's YOLOv3 neck with depthwise-separable 3x3 convolutions. Arguments: see ``mmdet.YOLOV3Neck``."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        separate_convs(self)


@MODELS.register_module()
class DepthwiseYOLOV3Head(YOLOV3Head):
    """mmdet's YOLOv3 head with depthwise-separable 3x3 convolutions and losses per image.

    mmdet sums the losses over the images of one GPU, so that the gradient grows with the batch size. Here the sums
    (``reduction='sum'``) are divided by the number of images, as in GluonCV.

    Ground truth may have ``weights``, one per box (detection mixup), by which all losses of the anchors assigned to the
    box are multiplied.

    Arguments: see ``mmdet.YOLOV3Head``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        separate_convs(self.convs_bridge)

    def init_weights(self) -> None:
        """Initialises as mmdet does, but keeps He normal weights before batch norms.

        mmdet's standard deviation of 0.01 suits the prediction layers. Before a batch norm, such small weights only
        increase the effective learning rate.
        """
        super().init_weights()
        for module in self.convs_bridge.modules():
            if isinstance(module, ConvModule):
                module.init_weights()

    def loss_by_feat(
        self,
        pred_maps: Sequence[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> dict[str, list[Tensor]]:
        """Losses per level, averaged over the images; see ``mmdet.YOLOV3Head.loss_by_feat``.

        Args:
            pred_maps: Per level, (N, anchors * (5 + classes), H, W).
            batch_gt_instances: Per image, ``bboxes`` (n, 4) in pixels and ``labels`` (n,).
            batch_img_metas: Per image, its meta information.
            batch_gt_instances_ignore: Not used by mmdet's YOLOv3, which treats these boxes as background.

        Returns:
            ``loss_cls``, ``loss_conf``, ``loss_xy`` and ``loss_wh``, each one scalar per level.
        """
        losses = super().loss_by_feat(pred_maps, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore)
        return {name: [level / len(batch_img_metas) for level in levels] for name, levels in losses.items()}

    def _get_targets_single(
        self, anchors: list[Tensor], responsible_flags: list[Tensor], gt_instances: InstanceData
    ) -> tuple[Tensor, Tensor]:
        """mmdet's targets, with the weight of each box as its objectness (1 without weights)."""
        target_map, neg_map = super()._get_targets_single(anchors, responsible_flags, gt_instances)
        if "weights" in gt_instances:
            priors = InstanceData(priors=torch.cat(anchors), responsible_flags=torch.cat(responsible_flags))
            box = self.assigner.assign(priors, gt_instances).gt_inds - 1  # negative: none
            target_map[box >= 0, 4] = gt_instances.weights[box[box >= 0]].to(target_map)
        return target_map, neg_map

    def loss_by_feat_single(self, pred_map: Tensor, target_map: Tensor, neg_map: Tensor) -> tuple[Tensor, ...]:
        """Losses of one level. mmdet weights them by the objectness target, which is the box weight here."""
        loss_cls, loss_conf, loss_xy, loss_wh = super().loss_by_feat_single(pred_map, target_map, neg_map)
        weight = target_map[..., 4]
        if ((weight > 0) & (weight < 1)).any():  # the weight is no target: objectness itself is 1 there
            pred = pred_map.permute(0, 2, 3, 1).reshape(len(pred_map), -1, self.num_attrib)[..., 4]
            loss_conf = self.loss_conf(pred, (weight > 0).float(), weight=neg_map.float() + weight)
        return loss_cls, loss_conf, loss_xy, loss_wh
