"""Less usual trainings: what trains plainly trains with NetAug, and what does not fails with the same words."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample
from stock import config_path, without_downloads
from torch import nn

from mmnetaug import ChannelSortHook
from mmnetaug.checkpoint import unpickling
from mmnetaug.elastic import base_state_dict, find_spaces

pytestmark = pytest.mark.slow
SIZE = 64
FACTORS = dict(width=[1, 1.5], expand=[1, 1.5], input_size=SIZE)
NOTHING = 1e-30  # so small an alpha that nothing of the augmented pass is left in float32: the step is a plain one


@DATASETS.register_module(force=True)
class Noise(BaseDataset):
    """Six noise images, with what a model of this kind is trained on."""

    METAINFO: ClassVar = dict(classes=("thing",))

    def __init__(self, kind: str, size: int = SIZE) -> None:
        self.kind, self.size = kind, size
        super().__init__()

    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(6)]

    def __getitem__(self, index: int) -> dict:
        shape = (self.size, self.size)
        image = torch.from_numpy(np.random.default_rng(index).integers(0, 255, (3, *shape)).astype(np.uint8))
        if self.kind == "classes":
            return dict(inputs=image, data_samples=DataSample().set_gt_label(index))
        masks = np.zeros((1, *shape), dtype=np.uint8)
        masks[:, 15:50, 10:45] = 1
        sample = DetDataSample(
            metainfo=dict(
                img_id=index,
                img_shape=shape,
                ori_shape=shape,
                scale_factor=(1.0, 1.0),
                homography_matrix=np.eye(3, dtype=np.float32),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[10.0, 15.0, 45.0, 50.0]]),
            labels=torch.zeros(1, dtype=torch.long),
            masks=BitmapMasks(masks, *shape),
        )
        if self.kind == "masks":
            return dict(inputs=image, data_samples=sample)
        # every second image is labelled, the others go to both networks of a semi-supervised detector
        branches = ["sup"] if index % 2 else ["unsup_teacher", "unsup_student"]
        packed = {name: {branch: None for branch in ("sup", "unsup_teacher", "unsup_student")} for name in ("x", "y")}
        for branch in branches:
            packed["x"][branch], packed["y"][branch] = image.clone(), copy.deepcopy(sample)
        return dict(inputs=packed["x"], data_samples=packed["y"])


def train(
    work_dir: Path,
    model: dict,
    kind: str = "classes",
    size: int = SIZE,
    batch: int = 2,
    iterations: int = 3,
    **changes: Any,
) -> Runner:
    """Trains ``model`` with NetAug's wrapper where it is elastic and MMEngine's where it is not."""
    netaug = "NetAug" in str(model)
    wrapper = dict(
        type="mmnetaug.NetAugOptimWrapper" if netaug else "OptimWrapper",
        optimizer=dict(type="SGD", lr=1e-3, momentum=0.9),
        **changes.pop("optim_wrapper", {}),
    )
    if not netaug:
        wrapper.pop("alpha", None)
    runner = Runner(
        model=copy.deepcopy(model),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=batch,
            num_workers=0,
            dataset=dict(type="mmengine.Noise", kind=kind, size=size),
            sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=dict(type="default_collate" if kind == "classes" else "pseudo_collate"),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=wrapper,
        default_hooks=dict(
            checkpoint=dict(type="mmnetaug.TinyCheckpointHook", by_epoch=False),
            logger=dict(type="LoggerHook", interval=1),
        ),
        default_scope="mmpretrain" if kind == "classes" else "mmdet",
        experiment_name=work_dir.name + str(netaug),
        randomness=dict(seed=0),
        **changes,
    )
    runner.train()
    return runner


def losses(runner: Runner, name: str = "loss") -> np.ndarray:
    return runner.message_hub.get_scalar(f"train/{name}").data[0]


def classifier(**backbone: Any) -> dict:
    two_stages = dict(num_stages=2, strides=(2, 2), dilations=(1, 1), out_indices=(1,))
    return dict(
        type="ImageClassifier",
        backbone=dict(type="ResNet", depth=18, base_channels=8, stem_channels=8, **two_stages, **backbone),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=10, in_channels=16),
        data_preprocessor=dict(mean=[127.0] * 3, std=[64.0] * 3),
    )


def two_stage(config: str, depth: int = 50) -> Config:
    """A config of mmdet's with few channels and proposals."""
    cfg = Config.fromfile(config_path(config))
    without_downloads(cfg.model)
    detector = cfg.model.get("detector", cfg.model)
    detector.backbone.update(depth=depth, base_channels=8, stem_channels=8)
    expansion = 4 if depth == 50 else 1
    detector.neck.update(in_channels=[expansion * width for width in (8, 16, 32, 64)], out_channels=16)
    detector.rpn_head.update(in_channels=16, feat_channels=16)
    head = detector.roi_head
    head.bbox_roi_extractor.update(out_channels=16)
    head.bbox_head.update(in_channels=16, fc_out_channels=32)
    if "mask_head" in head:
        head.mask_roi_extractor.update(out_channels=16)
        head.mask_head.update(in_channels=16, conv_out_channels=16)
    detector.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=50)
    return cfg


def assert_stock(runner: Runner, model: dict, scope: str) -> nn.Module:
    """The tiny checkpoint loads strictly into the plain model."""
    weights = torch.load(f"{runner.work_dir}/iter_3_tiny.pth", weights_only=True)["state_dict"]
    with DefaultScope.overwrite_default_scope(scope):
        stock = MODELS.build(copy.deepcopy(model))
    stock.load_state_dict(weights, strict=True)
    return stock


def test_mask_rcnn_with_deformable_convolutions(tmp_path):
    model = two_stage("mmdet::dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py").model
    elastic = dict(
        type="mmnetaug.NetAug", model=model, **{**FACTORS, "input_size": 96}
    )  # the kernel must fit into a map
    runner = train(tmp_path, elastic, "masks", size=96)
    for name in ("loss", "loss_aug", "loss_mask"):
        assert len(losses(runner, name)) == 3 and np.isfinite(losses(runner, name)).all()
    assert_stock(runner, model, "mmdet")


SOFT_TEACHER = "mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py"


def test_a_semi_supervised_detector(tmp_path):
    """NetAug goes around the detector that student and teacher are copies of."""
    stock = two_stage(SOFT_TEACHER, depth=18).model
    stock.semi_train_cfg.update(
        dict.fromkeys(["pseudo_label_initial_score_thr", "rpn_pseudo_thr", "cls_pseudo_thr"], 0.0)
    )
    model = copy.deepcopy(stock)
    model.detector = dict(type="mmnetaug.NetAug", model=stock.detector, **FACTORS)
    runner = train(tmp_path, model, "semi", batch=4, custom_hooks=[dict(type="mmdet.MeanTeacherHook")])
    assert len(losses(runner, "unsup_loss_cls")) == 3
    for name in ("loss", "loss_aug"):
        assert len(losses(runner, name)) == 3 and np.isfinite(losses(runner, name)).all()
    assert len(find_spaces(runner.model)) == 2
    assert_stock(runner, stock, "mmdet")

    # Pseudo-labels come from the tiny teacher in both passes.
    widths = {"student": [], "teacher": []}
    for name, seen in widths.items():
        detector = getattr(runner.model, name)
        detector.backbone.register_forward_pre_hook(
            lambda *args, space=detector.elastic, seen=seen: seen.append([group.width for group in space.groups])
        )
    space = runner.model.student.elastic
    space.sample = lambda *args: space.largest()
    runner.model.train_step(next(iter(runner.train_dataloader)), runner.optim_wrapper)
    assert space.largest() in widths["student"] and space.base() in widths["student"]
    assert all(seen == space.base() for seen in widths["teacher"]) and len(widths["teacher"]) == 2

    # The teacher averages the student's parameters one by one, so both must be sorted alike.
    def average(parameter: torch.Tensor) -> torch.Tensor:
        return 1 / (parameter.detach().abs() + 0.1)  # by itself, it would be sorted the other way round

    pairs = list(zip(runner.model.student.parameters(), runner.model.teacher.parameters(), strict=True))
    before = [student.detach().clone() for student, _ in pairs]
    for student, teacher in pairs:
        teacher.data = average(student)
    ChannelSortHook(by_epoch=False).before_train_iter(runner, 0)
    assert not all(torch.equal(old, student) for old, (student, _) in zip(before, pairs, strict=True))
    assert all(torch.equal(teacher, average(student)) for student, teacher in pairs)


def test_a_semi_supervised_detector_as_a_whole_is_refused():
    with (
        DefaultScope.overwrite_default_scope("mmdet"),
        pytest.raises(ValueError, match=r"SoftTeacher .* wrap the config of its detector"),
    ):
        MODELS.build(dict(type="mmnetaug.NetAug", model=two_stage(SOFT_TEACHER).model, **FACTORS))


def test_a_backbone_of_timm(tmp_path):
    pytest.importorskip("timm")
    model = classifier()
    model["backbone"] = dict(type="TIMMBackbone", model_name="mobilenetv3_small_050")
    model["head"]["in_channels"] = 1024
    runner = train(tmp_path, dict(type="mmnetaug.NetAug", model=model, **FACTORS))
    assert np.isfinite(losses(runner, "loss_aug")).all()
    assert not any(group.held_reason for group in runner.model.elastic.groups)
    stock, images = assert_stock(runner, model, "mmpretrain").eval(), torch.randn(2, 3, SIZE, SIZE)
    for one, other in zip(stock(images), runner.model.eval()(images), strict=True):
        assert torch.equal(one, other)


def assert_equal_to_plain(tmp_path: Path, *runs: dict, model: dict) -> tuple[Runner, Runner]:
    """With an augmented gradient of nothing, training ends where plain training ends."""
    trained = []
    for name, config in (("plain", model), ("netaug", dict(type="mmnetaug.NetAug", model=model, **FACTORS))):
        for changes in runs:
            settings = {"alpha": NOTHING, **changes.get("optim_wrapper", {})}
            runner = train(tmp_path / name, config, **{**changes, "optim_wrapper": settings})
        trained.append(runner)
    assert len(losses(trained[1], "loss_aug")) > 0  # the augmented pass was run
    plain, ours = trained[0].model.state_dict(), base_state_dict(trained[1].model)
    assert plain.keys() == ours.keys()
    assert [name for name, value in plain.items() if not torch.equal(value, ours[name])] == []
    return tuple(trained)


def test_a_last_batch_of_one_image(tmp_path):
    """Batch norms take it where maps are larger than a pixel, and refuse it where they are not, as without NetAug."""
    runs = assert_equal_to_plain(tmp_path, dict(batch=5, iterations=4), model=classifier())
    assert np.array_equal(*map(losses, runs))
    for model in (classifier(), dict(type="mmnetaug.NetAug", model=classifier(), **FACTORS)):
        with pytest.raises(ValueError, match=r"more than 1 value per channel when training.*\[1, \d+, 1, 1\]"):
            train(tmp_path / "small", model, size=16, batch=5)


@pytest.mark.parametrize("backbone", [dict(frozen_stages=1), dict(frozen_stages=2, norm_eval=True)], ids=str)
def test_frozen_stages(backbone, tmp_path):
    model = classifier(**backbone)
    _, ours = assert_equal_to_plain(tmp_path, {}, model=model)
    frozen = [name for name, parameter in ours.model.named_parameters() if not parameter.requires_grad]
    assert any(name.startswith("backbone.layer1") for name in frozen)
    with_aug = train(tmp_path / "aug", dict(type="mmnetaug.NetAug", model=model, **FACTORS))
    assert all(torch.equal(with_aug.model.state_dict()[name], ours.model.state_dict()[name]) for name in frozen)


def test_resumed_in_the_middle_of_accumulation(tmp_path):
    """What was gathered before the checkpoint is lost, as MMEngine warns, and no more than that."""
    settings = dict(
        optim_wrapper=dict(accumulative_counts=2, clip_grad=dict(max_norm=0.05)),
        custom_hooks=[dict(type="EMAHook", momentum=0.1)],
    )
    first, second = {**settings, "iterations": 3}, {**settings, "iterations": 6, "resume": True}
    with unpickling(anything=True):  # the run's own checkpoint, which MMEngine's original line cannot load otherwise
        assert_equal_to_plain(tmp_path, first, second, model=classifier())
