"""The data set of the demo."""

from __future__ import annotations

from mmnetaug.datasets import VOCLayoutDataset
from mmnetaug.registry import DATASETS


@DATASETS.register_module()
class DigitScenes(VOCLayoutDataset):
    """Handwritten digits on textured 160x160 scenes, written to ``data_root`` at first use.

    Args:
        data_root: Folder of the scenes; created when absent.
        split: ``'train'`` (1500 scenes) or ``'test'`` (300, of other scans).
        **kwargs: See ``mmdet.XMLDataset``.

    Raises:
        FileExistsError: ``data_root`` holds something else.
    """

    METAINFO = {  # noqa: RUF012 (how MMEngine's datasets declare it)
        "classes": tuple("0123456789"),
        "palette": [
            (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
            (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212),
        ],
    }  # fmt: skip

    def __init__(self, data_root: str = "data/digits", split: str = "train", **kwargs) -> None:
        # Imported here: it needs scikit-learn, which nothing else does.
        from .digits import SCENES, ensure_digits

        if split not in SCENES:
            raise ValueError(f"split must be one of {', '.join(SCENES)}, not {split!r}.")
        ensure_digits(data_root)
        super().__init__(
            data_root=str(data_root),
            ann_file=f"ImageSets/Main/{split}.txt",
            data_prefix=dict(sub_data_root=""),
            **kwargs,
        )
