"""Detection data in Pascal VOC layout: a user's own, as people really have them, and the demo's digits."""

import os
import os.path as osp

from mmcv.transforms import BaseTransform
from mmdet.datasets import XMLDataset

from mmnetaug.registry import DATASETS, TRANSFORMS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@DATASETS.register_module()
class VOCLayoutDataset(XMLDataset):
    """``XMLDataset`` that finds each image by its stem and drops boxes without area.

    The stock class looks for ``<id>.jpg`` only, and hands boxes with ``xmax <= xmin`` or ``ymax <= ymin`` to training,
    where the logarithm of their size makes the loss infinite. All arguments are those of ``XMLDataset``; note that it
    needs ``data_prefix=dict(sub_data_root='')`` to look below ``data_root`` and ``metainfo=dict(classes=...)``.
    """

    def load_data_list(self) -> list[dict]:
        """Load the annotations of every id in ``ann_file``; see ``XMLDataset``."""
        self._names = self.image_names()
        return super().load_data_list()

    def image_names(self) -> dict[str, str]:
        """File name of each image, by its stem."""
        names = sorted(os.listdir(osp.join(self.sub_data_root, self.img_subdir)))
        return {osp.splitext(name)[0]: name for name in names if name.lower().endswith(IMAGE_SUFFIXES)}

    def parse_data_info(self, img_info: dict) -> dict:
        """Parse one XML file, with the image's real file name."""
        name = self._names.get(img_info["img_id"])
        if name is not None:
            img_info = {**img_info, "file_name": osp.join(self.img_subdir, name)}
        return super().parse_data_info(img_info)

    def _parse_instance_info(self, *args, **kwargs) -> list[dict]:
        instances = super()._parse_instance_info(*args, **kwargs)
        return [one for one in instances if one["bbox"][2] > one["bbox"][0] and one["bbox"][3] > one["bbox"][1]]


@TRANSFORMS.register_module()
class TrainOnDifficult(BaseTransform):
    """Has objects that Pascal VOC calls difficult trained on, as GluonCV does.

    mmdet sets them apart, but YOLOv3's loss knows of no boxes to ignore: it would take what is there for background.
    Stands behind ``LoadAnnotations`` in training pipelines; measuring goes on to leave such objects out. COCO's crowds,
    boxes around many objects, stay set apart.
    """

    def transform(self, results: dict) -> dict:
        """Clear ``gt_ignore_flags`` (n,) of data that come from XML files."""
        if "xml_path" in results:
            results["gt_ignore_flags"][:] = False
        return results


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
        # Imported here: it needs scikit-learn, which nothing else does, and is also run with `python -m`.
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
