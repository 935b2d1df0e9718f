"""In-place distillation, the normalised sum and gradient surgery against independently built plain networks."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from mmpretrain.structures import DataSample
from networks import BACKBONES, batch, build_pair, detector_config, plain_at, scatter_gradients
from steps import RATE, assert_updated, gradients, peak_of, step, wrapper
from torch import Tensor, nn

from mmnetaug.models.distillation import OutputDivergence

DISTILL = dict(weight=0.3, temperature=2.0)


def classifier_config(multi_label: bool = False) -> dict:
    head = dict(num_classes=5, in_channels=64)
    kind = "MultiLabelLinearClsHead" if multi_label else "LinearClsHead"
    return dict(
        type="mmpretrain.ImageClassifier",
        data_preprocessor=dict(type="mmpretrain.ClsDataPreprocessor"),
        backbone=dict(BACKBONES["resnet18"][0], out_indices=(3,)),
        neck=dict(type="mmpretrain.GlobalAveragePooling"),
        head=dict(type=f"mmpretrain.{kind}", **head),
    )


def labelled(images: int = 4, seed: int = 0, multi_label: bool = False) -> dict:
    data = batch(images, seed, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    samples = [DataSample() for _ in range(images)]
    for sample in samples:
        if multi_label:
            sample.set_gt_score(torch.randint(0, 2, (5,), generator=generator).double())
        else:
            sample.set_gt_label(int(torch.randint(0, 5, (1,), generator=generator)))
    return dict(inputs=data["inputs"], data_samples=samples)


def padded(data: dict) -> dict:
    for sample in data["data_samples"]:
        sample.set_metainfo(dict(pad_shape=sample.img_shape))
    return data


def retinanet_config() -> dict:
    """A head with class scores, several anchors a place, and a sigmoid."""
    config = detector_config("resnet18")
    return dict(
        type="mmdet.RetinaNet",
        data_preprocessor=config["data_preprocessor"],
        backbone=config["backbone"],
        neck=dict(type="mmdet.FPN", in_channels=[16, 32, 64], out_channels=16, num_outs=3),
        bbox_head=dict(
            type="mmdet.RetinaHead",
            num_classes=3,
            in_channels=16,
            feat_channels=16,
            stacked_convs=1,
            anchor_generator=dict(
                type="mmdet.AnchorGenerator",
                octave_base_scale=2,
                scales_per_octave=2,
                ratios=[0.5, 1.0],
                strides=[8, 16, 32],
            ),
            bbox_coder=dict(type="mmdet.DeltaXYWHBBoxCoder"),
            loss_cls=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True),
            loss_bbox=dict(type="mmdet.L1Loss"),
        ),
        train_cfg=dict(
            assigner=dict(
                type="mmdet.MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1
            ),
            sampler=dict(type="mmdet.PseudoSampler"),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.6)),
    )


def yolox_config() -> dict:
    """A head with objectness in an output by itself."""
    config = detector_config("resnet18")
    return dict(
        type="mmdet.YOLOX",
        data_preprocessor=config["data_preprocessor"],
        backbone=config["backbone"],
        neck=dict(type="mmdet.FPN", in_channels=[16, 32, 64], out_channels=16, num_outs=3),
        bbox_head=dict(type="mmdet.YOLOXHead", num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1),
        train_cfg=dict(assigner=dict(type="mmdet.SimOTAAssigner")),
        test_cfg=dict(score_thr=0.01, nms=dict(type="nms", iou_threshold=0.65)),
    )


def softmax_kl(student: Tensor, teacher: Tensor, t: float, dim: int) -> Tensor:
    """T² · Σ p log(p / q) as it is written in the papers."""
    p, q = (teacher / t).softmax(dim), (student / t).softmax(dim)
    return t * t * (p * (p / q).log()).sum()


def logits_divergence(student: list[Tensor], teacher: list[Tensor], t: float) -> Tensor:
    [student], [teacher] = student, teacher
    return softmax_kl(student, teacher, t, 1) / len(student)


def bernoulli(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    p, q = (teacher / t).sigmoid(), (student / t).sigmoid()
    return t * t * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()


def multi_label_divergence(student: list[Tensor], teacher: list[Tensor], t: float) -> Tensor:
    [student], [teacher] = student, teacher
    return bernoulli(student, teacher, t) / len(student)


def neck_divergence(student: list[Tensor], teacher: list[Tensor], t: float) -> Tensor:
    def normalised(x: Tensor) -> Tensor:
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
        return ((x - mean) / (variance + 1e-5).sqrt()).flatten(2)

    levels = zip(student, teacher, strict=True)
    return sum(softmax_kl(normalised(s), normalised(h), t, 2) / (s.shape[0] * s.shape[1]) for s, h in levels)


def score_divergence(student: list[Tensor], teacher: list[Tensor], t: float) -> Tensor:
    levels = zip(student, teacher, strict=True)
    return sum(bernoulli(s, h, t) / max(1.0, h.sigmoid().sum().item()) for s, h in levels)


def score_with_objectness_divergence(student: list[Tensor], teacher: list[Tensor], t: float) -> Tensor:
    """Maps of (x, y, w, h, objectness, three classes) of each anchor."""

    def logits(maps: Tensor) -> Tensor:
        maps = maps.view(len(maps), -1, 8, *maps.shape[2:]).sigmoid()
        scores = maps[:, :, 4:5] * maps[:, :, 5:]
        return (scores / (1 - scores)).log()

    return score_divergence(list(map(logits, student)), list(map(logits, teacher)), t)


CASES = {
    "classifier": (classifier_config, labelled, {"head": logits_divergence}),
    "multi-label": (
        lambda: classifier_config(True),
        lambda seed=0: labelled(seed=seed, multi_label=True),
        {"head": multi_label_divergence},
    ),
    "yolov3": (
        lambda: detector_config("mobilenet_v3"),
        lambda seed=0: batch(2, seed, torch.float64),
        {"neck": neck_divergence, "bbox_head": score_with_objectness_divergence},
    ),
    "retinanet": (
        retinanet_config,
        lambda seed=0: padded(batch(2, seed, torch.float64)),
        {"neck": neck_divergence, "bbox_head": score_divergence},
    ),
}


def run_watched(network: nn.Module, data: dict, parts: list[str]) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Loss of a plain network, and what some of its parts return in that pass (of a head, what holds class scores)."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str):
        def hook(module, inputs, outputs) -> None:
            outputs = outputs[0] if name == "bbox_head" else outputs
            seen[name] = list(outputs) if isinstance(outputs, list | tuple) else [outputs]

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in parts]
    loss = network.parse_losses(network(**copy.deepcopy(data), mode="loss"))[0]
    for hook in hooks:
        hook.remove()
    return loss, seen


def distilled_gradients(
    elastic: nn.Module,
    plain: nn.Module,
    data: dict,
    widths: list[int],
    divergences: dict,
    context=contextlib.nullcontext,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the distilled base loss and of the augmented loss, by two independent networks."""
    large, small = plain_at(elastic, plain, widths), plain_at(elastic, plain, elastic.elastic.base())
    with context():
        loss, teacher = run_watched(large, data, list(divergences))
    loss.backward()
    with context():
        loss, student = run_watched(small, data, list(divergences))
    targets = {name: [exact(tensor.detach()) for tensor in tensors] for name, tensors in teacher.items()}
    student = {name: [exact(tensor) for tensor in tensors] for name, tensors in student.items()}
    weight, t = DISTILL["weight"], DISTILL["temperature"]
    divergence = sum(compare(student[name], targets[name], t) for name, compare in divergences.items())
    assert divergence > 1e-6, "nothing would be distilled"
    ((1 - weight) * loss + weight * divergence).backward()
    return (
        scatter_gradients(elastic, small, elastic.elastic.base()),
        scatter_gradients(elastic, large, widths),
    )


def exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


@pytest.mark.parametrize("case", list(CASES))
def test_a_distilled_step_is_that_of_independent_networks(case):
    """W − lr · (∂[(1 − λ) · L(base) + λ · D(base, augmented, detached)] + α · ∂L(augmented))."""
    config, data, divergences = CASES[case]
    elastic, plain = build_pair(config(), torch.float64)
    expected = {name: parameter.detach().clone() for name, parameter in elastic.named_parameters()}
    optim_wrapper = wrapper(elastic, alpha=0.5, distill=DISTILL)
    widths = elastic.elastic.sample(0, 0)
    base, augmented = distilled_gradients(elastic, plain, data(), widths, divergences)
    step(elastic, data(), optim_wrapper)
    for name in expected:
        expected[name] -= RATE * (base[name] + 0.5 * augmented[name])
    assert_updated(elastic, expected)


def test_it_adds_up_with_an_external_teacher(tmp_path):
    """Both passes learn from the teacher; the base pass also from the augmented one."""
    teacher = classifier_config()
    weights = build_pair(classifier_config())[1].state_dict()
    torch.save({name: torch.randn_like(value.float()).abs() / 3 for name, value in weights.items()}, tmp_path / "t.pth")
    taught_by = dict(teacher=teacher, teacher_checkpoint=str(tmp_path / "t.pth"))
    student = dict(type="mmnetaug.Distilled", model=classifier_config(), **taught_by)
    elastic, plain = build_pair(student, torch.float64)
    plain._teacher = (copy.deepcopy(elastic.teacher),)  # which init_weights has loaded
    data, divergences = labelled(), {"head": logits_divergence}
    base, augmented = distilled_gradients(elastic, plain, data, elastic.elastic.sample(0, 0), divergences)
    expected = {name: p.detach() - RATE * (base[name] + augmented[name]) for name, p in elastic.named_parameters()}
    assert step(elastic, data, wrapper(elastic, distill=DISTILL))["loss_kd"] > 0
    assert_updated(elastic, expected)


def test_distillation_with_accumulation_and_clipping():
    config, data, divergences = CASES["classifier"]
    elastic, plain = build_pair(config(), torch.float64)
    sums = [{name: torch.zeros_like(p) for name, p in elastic.named_parameters()} for _ in range(2)]
    for iteration in range(2):
        widths = elastic.elastic.sample(0, iteration)
        for total, found in zip(
            sums, distilled_gradients(elastic, plain, data(seed=iteration), widths, divergences), strict=True
        ):
            for name in total:
                total[name] += found[name] / 2
    norms = [torch.stack([gradient.norm() for gradient in total.values()]).norm().item() for total in sums]
    limit = min(norms) / 2
    expected = {name: p.detach().clone() for name, p in elastic.named_parameters()}
    for norm, total in zip(norms, sums, strict=True):
        for name in expected:
            expected[name] -= RATE * limit / (norm + 1e-6) * total[name]
    optim_wrapper = wrapper(elastic, distill=DISTILL, clip_grad=dict(max_norm=limit), accumulative_counts=2)
    for iteration in range(2):
        step(elastic, data(seed=iteration), optim_wrapper)
    assert_updated(elastic, expected)


def test_a_part_of_the_batch_teaches_its_own_images():
    """With share=0.5 the first two of four images have outputs of the augmented network."""
    elastic, plain = build_pair(classifier_config(), torch.float64)
    data = labelled()
    large, small = (plain_at(elastic, plain, w) for w in (elastic.elastic.sample(0, 0), elastic.elastic.base()))
    half = {key: value[:2] for key, value in data.items()}
    loss, teacher = run_watched(large, half, ["head"])
    loss.backward()
    loss, student = run_watched(small, data, ["head"])
    weight, t = DISTILL["weight"], DISTILL["temperature"]
    divergence = logits_divergence([student["head"][0][:2]], [teacher["head"][0].detach()], t)
    ((1 - weight) * loss + weight * divergence).backward()
    expected = {name: p.detach().clone() for name, p in elastic.named_parameters()}
    for network, widths in ((large, elastic.elastic.sample(0, 0)), (small, elastic.elastic.base())):
        for name, gradient in scatter_gradients(elastic, network, widths).items():
            expected[name] -= RATE * gradient
    step(elastic, data, wrapper(elastic, distill=DISTILL, share=0.5))
    assert_updated(elastic, expected)


def test_mixed_precision_with_distillation():
    """The networks run under bfloat16 autocast, the divergences in float32."""
    config, data, divergences = CASES["classifier"]
    elastic, plain = build_pair(config())
    data = data() | dict(inputs=data()["inputs"].float())
    base, augmented = distilled_gradients(
        *(elastic, plain, data, elastic.elastic.sample(0, 0), divergences),
        context=lambda: torch.autocast("cpu", torch.bfloat16),
    )
    expected = {name: p.detach() - RATE * (base[name] + augmented[name]) for name, p in elastic.named_parameters()}
    step(elastic, data, wrapper(elastic, "mmnetaug.NetAugAmpOptimWrapper", distill=DISTILL))
    assert_updated(elastic, expected, 1e-5)


def test_scores_of_yolox_are_those_of_inference():
    """Its assigner computes in float32 alone, so that no step of it is compared with independent networks."""
    _, model = build_pair(yolox_config(), torch.float64)
    distillation = OutputDivergence()
    with distillation.watching(model):
        classes, _, objectness = model.bbox_head(model.extract_feat(batch(2, 0, torch.float64)["inputs"]))
    found = distillation.take()["bbox_head"]
    for logits, scores, objects in zip(found, classes, objectness, strict=True):
        assert torch.allclose(logits.sigmoid(), scores.sigmoid() * objects.sigmoid(), rtol=1e-10)


def test_what_cannot_be_distilled_is_told():
    elastic, _ = build_pair(classifier_config(), torch.float64)
    elastic.head.loss = lambda feats, samples: dict(loss=feats[0].sum())
    with pytest.raises(RuntimeError, match="does not call its head"):
        step(elastic, labelled(), wrapper(elastic, distill=DISTILL))
    with pytest.raises(TypeError, match="has neither"), OutputDivergence().watching(elastic.backbone):
        pass


@pytest.mark.parametrize(
    "settings",
    [dict(weight=0), dict(weight=1.5), dict(temperature=0), dict(temperature=math.inf)],
    ids=lambda settings: str(settings),
)
def test_nonsense_is_refused(settings):
    elastic, _ = build_pair(classifier_config(), torch.float64)
    with pytest.raises(ValueError, match=f"distill.{next(iter(settings))}"):
        wrapper(elastic, distill=settings)


def test_distillation_keeps_the_passes_apart_in_memory():
    elastic, _ = build_pair(detector_config("mobilenet_v2"))
    elastic.elastic.sample = lambda *args: elastic.elastic.largest()
    data = batch(8)
    peaks = []
    for settings in ({}, dict(distill=DISTILL)):
        optim_wrapper = wrapper(elastic, **settings)
        step(elastic, data, optim_wrapper)
        peaks.append(peak_of(lambda its=optim_wrapper: step(elastic, data, its)))
    assert peaks[1] <= 1.03 * peaks[0], peaks


# The sum of both gradients --------------------------------------------------------------------------------------------


def both(elastic: nn.Module, plain: nn.Module, data: dict) -> list[dict[str, Tensor]]:
    return [gradients(elastic, plain, data, w) for w in (elastic.elastic.base(), elastic.elastic.sample(0, 0))]


@pytest.mark.parametrize("clip", [None, dict(max_norm=0.5)], ids=["", "clipped"])
def test_the_sum_can_be_normalized(clip):
    """(g + α g') / (1 + α), each clipped before."""
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    data = batch(dtype=torch.float64)
    base, augmented = both(elastic, plain, data)
    augmented = {name: 3 * gradient for name, gradient in augmented.items()}
    if clip:
        for found in (base, augmented):
            norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
            for name in found:
                found[name] = found[name] * 0.5 / (norm + 1e-6)
    expected = {n: p.detach() - RATE * (base[n] + augmented[n]) / 4 for n, p in elastic.named_parameters()}
    step(elastic, data, wrapper(elastic, alpha=3.0, normalize=True, clip_grad=clip))
    assert_updated(elastic, expected)


@pytest.mark.parametrize("surgery", [None, "all"])
def test_normalized_gradients_of_the_base_pass_alone(surgery):
    """A parameter that the augmented pass does not use has half of its gradient too."""
    elastic, _ = build_pair(classifier_config(), torch.float64)
    elastic.register_parameter("extra", nn.Parameter(torch.ones((), dtype=torch.float64)))
    parse, space = elastic.parse_losses, elastic.elastic

    def parse_losses(losses: dict) -> tuple:
        loss, log = parse(losses)
        at_base = [group.width for group in space.groups] == space.base()
        return (loss + elastic.extra if at_base else loss), log

    elastic.parse_losses = parse_losses
    step(elastic, labelled(), wrapper(elastic, normalize=True, surgery=surgery))
    assert elastic.extra.item() == pytest.approx(1 - RATE / 2, abs=1e-12)


@pytest.mark.parametrize("surgery", ["tensor", "all"])
def test_surgery_removes_what_points_against_the_base_gradient(surgery):
    """The augmented loss is turned round, so that the two conflict: in all as one vector, and in most tensors."""
    elastic, plain = build_pair(detector_config("resnet18"), torch.float64)
    data = batch(dtype=torch.float64)
    base, augmented = both(elastic, plain, data)
    augmented = {name: -gradient for name, gradient in augmented.items()}
    products = {name: (base[name] * augmented[name]).sum() for name in base}
    squares = {name: (base[name] ** 2).sum() for name in base}
    if surgery == "all":
        assert sum(products.values()) < 0
        products = dict.fromkeys(base, sum(products.values()))
        squares = dict.fromkeys(base, sum(squares.values()))
    else:
        assert 0 < sum(product < 0 for product in products.values()) < len(base)
    for name in base:
        if products[name] < 0:
            augmented[name] = augmented[name] - products[name] / squares[name] * base[name]
    expected = {n: p.detach() - RATE * (base[n] + augmented[n]) for n, p in elastic.named_parameters()}
    turn_augmented_loss(elastic)
    step(elastic, data, wrapper(elastic, surgery=surgery))
    assert_updated(elastic, expected)


def turn_augmented_loss(elastic: nn.Module) -> None:
    """Negates the loss at all widths but the base ones."""
    parse, space = elastic.parse_losses, elastic.elastic

    def parse_losses(losses: dict) -> tuple:
        loss, log = parse(losses)
        return (loss if [g.width for g in space.groups] == space.base() else -loss), log

    elastic.parse_losses = parse_losses


def test_surgery_is_one_of_two():
    elastic, _ = build_pair(detector_config("resnet18"))
    with pytest.raises(ValueError, match="surgery"):
        wrapper(elastic, surgery="layer")
