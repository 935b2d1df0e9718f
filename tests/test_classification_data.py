"""Published classification sets: read in their real layout, and one clear error for what is wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data_fixtures import MAKERS
from mmengine.config import Config

from mmnetaug.datasets import check_data
from mmnetaug.errors import DataError

CONFIGS = Path(__file__).parents[1] / "configs/classification"
OF_SET = {
    "imagenet": "imagenet/mobilenet_v2_tiny_in1k.py",
    "food101": "transfer/mobilenet_v2_w035_food101.py",
    "flowers102": "transfer/mobilenet_v2_w035_flowers102.py",
    "cars": "transfer/mobilenet_v2_w035_cars.py",
    "cub200": "transfer/mobilenet_v2_w035_cub200.py",
    "pets": "transfer/mobilenet_v2_w035_pets.py",
}
CLASSES = {"imagenet": 1000, "food101": 101, "flowers102": 102, "cars": 196, "cub200": 200, "pets": 37}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes each data set once."""
    roots: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in roots:
            roots[name] = MAKERS[name](tmp_path_factory.mktemp("data") / name)
        return roots[name]

    return make


def config(name: str, root: Path) -> Config:
    cfg = Config.fromfile(CONFIGS / OF_SET[name])
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(root)
    return cfg


@pytest.mark.parametrize("name", OF_SET)
def test_every_set_is_read_in_its_real_layout(made, name):
    reports = check_data(config(name, made(name)))
    count = CLASSES[name]
    assert [report.images for report in reports] == [2 * count if name == "flowers102" else count, count]
    for report in reports:
        assert "that were published" in report.warnings[0]
        if name != "flowers102":  # mmpretrain has no names for its classes
            assert len(report.classes) == report.objects.total() == count


@pytest.mark.parametrize("name", OF_SET)
def test_an_empty_folder_is_told_where_the_data_come_from(name, tmp_path):
    with pytest.raises(DataError, match=r"train data: not there: ") as error:
        check_data(config(name, tmp_path))
    assert "http" in str(error.value) and str(tmp_path) in str(error.value)


def spoil_imagenet_layout(root):  # images of all classes in one folder
    for folder in (root / "val").iterdir():
        for path in folder.iterdir():
            path.rename(root / "val" / path.name)
        folder.rmdir()


def spoil_imagenet_class(root):
    shutil.rmtree(root / "train/n01440764")


def spoil_food_class(root):
    shutil.rmtree(root / "images/apple_pie")


def spoil_flowers_swap(root):
    shutil.copy(root / "setid.mat", root / "imagelabels.mat")


def spoil_flowers_text(root):
    (root / "setid.mat").write_text("trnid,valid,tstid\n" * 20)


def spoil_cars_unlabelled(root):
    shutil.copy(root / "devkit/cars_test_annos.mat", root / "devkit/cars_test_annos_withlabels.mat")


def spoil_cars_meta(root):
    shutil.copy(root / "devkit/cars_meta.mat", root / "devkit/cars_train_annos.mat")


def spoil_cub_split(root):
    (root / "train_test_split.txt").unlink()


def spoil_cub_lines(root):
    lines = (root / "images.txt").read_text().splitlines()
    (root / "images.txt").write_text("\n".join(lines[:-1]))


def spoil_pets_layout(root):
    (root / "annotations/trainval.txt").write_text("Abyssinian_1.jpg\n")


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("imagenet", spoil_imagenet_layout, r"val data: ImageNet cannot be loaded: "),
        ("imagenet", spoil_imagenet_class, r"train data: .* subfolders \(999\) .* classes \(1000\)"),
        ("food101", spoil_food_class, r"train data: 1 annotated images are absent: .*apple_pie"),
        ("flowers102", spoil_flowers_swap, r"imagelabels.mat is another .mat file: it holds no labels, but trnid"),
        ("flowers102", spoil_flowers_text, r"setid.mat cannot be read as a MATLAB file"),
        ("cars", spoil_cars_unlabelled, r"cars_test_annos_withlabels.mat is another .mat file: .* have no class"),
        ("cars", spoil_cars_meta, r"it holds no annotations, but class_names"),
        ("cub200", spoil_cub_split, r"not there: .*train_test_split.txt"),
        ("cub200", spoil_cub_lines, r"sample_ids should be same"),
        ("pets", spoil_pets_layout, r"train data: OxfordIIITPet cannot be loaded: not enough values"),
    ],
)
def test_one_clear_error(made, tmp_path, name, spoil, message):
    root = tmp_path / name
    shutil.copytree(made(name), root)
    spoil(root)
    with pytest.raises(DataError, match=message) as error:
        check_data(config(name, root))
    assert "http" in str(error.value)


def test_folders_of_train_and_val_must_be_the_same_classes(made, tmp_path):
    """Without names of its own a set is numbered by its folders, and labels would shift."""
    root = tmp_path / "classes"
    shutil.copytree(made("classes"), root)
    shutil.rmtree(root / "val/cat")
    cfg = Config.fromfile(CONFIGS / "cifar10/mobilenet_v2_tiny_cifar10.py")
    cfg.model.head.num_classes = 2
    for split in ("train", "val"):
        cfg[f"{split}_dataloader"].dataset.update(data_root=str(root), data_prefix=split)
    with pytest.raises(DataError, match="its classes are not those of train"):
        check_data(cfg)
