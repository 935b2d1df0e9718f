"""The report of the checks of a data set, and where stock data come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmnetaug.terminal import abbreviate

VOC_SOURCE = """Pascal VOC 2007 and 2012 come from http://host.robots.ox.ac.uk/pascal/VOC/ : unpack
VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar, so that there are VOC2007/ and
VOC2012/ in the folder VOCdevkit, each with JPEGImages/, Annotations/ and ImageSets/Main/."""
COCO_SOURCE = """COCO 2017 comes from https://cocodataset.org/#download : unpack train2017.zip, val2017.zip and
annotations_trainval2017.zip, so that there are train2017/, val2017/ and annotations/ in one folder."""


@dataclass
class DatasetReport:
    """The findings in one data set.

    Attributes:
        name: Its name in the config, such as ``train``.
        source: Its list of images or annotation file, as given in the config.
        classes: Class names in the order of their labels.
        images: Number of images.
        decoded: Number of images that the check has decoded in full.
        without_objects: Number of images in which mmdet finds no object.
        objects: Number of objects (in classification, images) of each class, without those that mmdet ignores.
        listed: Class names in the annotation file, with objects or without (COCO layout).
        labels: Labels of images if classes have no names.
        problems: Faults with which it cannot be used.
        warnings: Faults that training can handle.
        hint: What to do if the data are missing.
    """

    name: str
    source: str = ""
    classes: tuple[str, ...] = ()
    images: int = 0
    decoded: int = 0
    without_objects: int = 0
    objects: Counter = field(default_factory=Counter)
    listed: set[str] = field(default_factory=set)
    labels: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    hint: str = ""

    def __str__(self) -> str:
        line = f"{self.name}: {self.images} images ({self.decoded} decoded)" + f" of {self.source}" * bool(self.source)
        if self.without_objects:
            line += f", {self.without_objects} of them without objects"
        if self.objects:
            shown = [f"{name} {count}" for name, count in self.objects.most_common(8)]
            more = ", ..." if len(self.objects) > 8 else ""
            line += f", {sum(self.objects.values())} labels of {len(self.objects)} classes ({', '.join(shown)}{more})"
        return "\n".join([line, *(f"  warning: {text}" for text in self.warnings)])

    def warn(self, text: str, items: Sequence) -> None:
        """Adds a warning that counts ``items`` and shows some of them, if there are any."""
        if items:
            self.warnings.append(f"{len(items)} {text}: {abbreviate(items)}")

    def leave_out(self, filtered: Sequence) -> None:
        """Counts the images that the data set's ``filter_cfg`` removes."""
        self.warn("images are left out by filter_cfg, being small or without objects", filtered)
        if filtered and len(filtered) == self.images:
            self.problems.append("filter_cfg leaves no image in it")
