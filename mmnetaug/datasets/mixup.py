"""Detection mixup (Zhang et al., "Bag of freebies for training object detection neural networks", 2019).

Two whole images are blended and the boxes of both are kept. The loss of each box is weighted by the share of its image:
``gt_instances.weights``, which :class:`mmnetaug.models.DepthwiseYOLOV3Head` reads. For the pipeline of mmdet's
``MultiImageMixDataset``, followed by :class:`PackMixedDetInputs`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PackDetInputs
from mmengine.dataset import BaseDataset

from mmnetaug.registry import TRANSFORMS


@TRANSFORMS.register_module()
class DetectionMixUp(BaseTransform):
    """Blends an image with another image of the data set.

    Args:
        alpha: The first image's share is drawn from Beta(alpha, alpha); 1.5 in the paper above.
    """

    def __init__(self, alpha: float = 1.5) -> None:
        self.alpha = alpha

    def get_indexes(self, dataset: BaseDataset) -> int:
        """Index of the other image."""
        return np.random.randint(len(dataset))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Blends ``img``; joins boxes, labels and ignore flags; adds ``gt_weights`` (n,), the share of each box.

        Images of different sizes are aligned at the upper left corner and padded with black.
        """
        (other,) = results["mix_results"]
        share = np.float32(np.random.beta(self.alpha, self.alpha))
        height, width = np.maximum(results["img"].shape[:2], other["img"].shape[:2])
        blend = np.zeros((height, width, 3), np.float32)
        for one, part in ((results, share), (other, 1 - share)):
            h, w = one["img"].shape[:2]
            blend[:h, :w] += part * one["img"]
        counts = [len(one["gt_bboxes"]) for one in (results, other)]
        results["img"] = blend.astype(results["img"].dtype)
        results["img_shape"] = (height, width)
        results["gt_bboxes"] = type(results["gt_bboxes"]).cat([results["gt_bboxes"], other["gt_bboxes"]])
        for key in ("gt_bboxes_labels", "gt_ignore_flags"):
            results[key] = np.concatenate([results[key], other[key]])
        results["gt_weights"] = np.repeat(np.float32([share, 1 - share]), counts)
        return results


@TRANSFORMS.register_module()
class PackMixedDetInputs(PackDetInputs):
    """mmdet's ``PackDetInputs`` that also packs the weights of the boxes, as ``gt_instances.weights``."""

    mapping_table = {**PackDetInputs.mapping_table, "gt_weights": "weights"}  # noqa: RUF012 (as mmdet declares it)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Packs the results of a pipeline.

        Raises:
            ValueError: A transform after the mixup has removed boxes, but not their weights.
        """
        if len(results.get("gt_weights", results["gt_bboxes"])) != len(results["gt_bboxes"]):
            raise ValueError("put transforms that remove boxes before DetectionMixUp, not after it")
        return super().transform(results)
