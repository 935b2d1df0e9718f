"""Data that mmdet and mmpretrain do not read by themselves, and the checks made before the first iteration."""

from .check import check_data, check_dataset
from .custom import fill_config, set_data_root
from .mixup import DetectionMixUp, PackMixedDetInputs
from .report import DataError, DatasetReport
from .voc import DigitScenes, TrainOnDifficult, VOCLayoutDataset

__all__ = [
    "DataError",
    "DatasetReport",
    "DetectionMixUp",
    "DigitScenes",
    "PackMixedDetInputs",
    "TrainOnDifficult",
    "VOCLayoutDataset",
    "check_data",
    "check_dataset",
    "fill_config",
    "set_data_root",
]
