"""Data sets and transforms that mmdet and mmpretrain lack, and the checks of the data before training."""

import mmnetaug.registry  # noqa: F401  (first, since it imports OpenMMLab's data sets without what they print)

from .check import check_data, find_unlisted
from .crop import MinIoURandomCrop
from .custom import fill_config, set_classes, set_data_root
from .mixup import DetectionMixUp, PackMixedDetInputs
from .once import decoded_once
from .report import DatasetReport
from .voc import TrainOnDifficult, VOCLayoutDataset

__all__ = [
    "DatasetReport",
    "DetectionMixUp",
    "MinIoURandomCrop",
    "PackMixedDetInputs",
    "TrainOnDifficult",
    "VOCLayoutDataset",
    "check_data",
    "decoded_once",
    "fill_config",
    "find_unlisted",
    "set_classes",
    "set_data_root",
]
