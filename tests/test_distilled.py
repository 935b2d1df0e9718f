"""Distillation from a trained teacher: the loss, what the teacher is no part of, and both together with NetAug."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.structures import DataSample
from networks import batch as detection_batch
from networks import build_pair, plain_at
from test_distillation import CASES, exact, run_watched
from torch import nn

from mmnetaug import NetAugOptimWrapper
from mmnetaug.apis.build import build_model
from mmnetaug.apis.preflight import check_pretrained
from mmnetaug.checkpoint import ReadOnce
from mmnetaug.config import without_netaug
from mmnetaug.elastic import base_state_dict
from mmnetaug.errors import UserError

CLASSES = 5


def classifier(base_channels=4, classes=CLASSES, **kwargs):
    return dict(
        type="ImageClassifier",
        backbone=dict(type="ResNet", depth=18, base_channels=base_channels, stem_channels=base_channels),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=classes, in_channels=8 * base_channels),
        **kwargs,
    )


def build(config):
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(copy.deepcopy(config))


def distilled(teacher=None, **kwargs):
    return dict(type="mmnetaug.Distilled", model=classifier(), teacher=teacher or classifier(8), **kwargs)


def batch(images=4):
    generator = torch.Generator().manual_seed(0)
    samples = [DataSample().set_gt_label(i % CLASSES) for i in range(images)]
    return torch.randn(images, 3, 32, 32, generator=generator), samples


@pytest.fixture
def teacher_file(tmp_path):
    torch.manual_seed(1)
    teacher = build(classifier(8))
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.2)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (4.0, 0.5)])
def test_loss_is_hintons(teacher_file, temperature, weight):
    torch.manual_seed(0)
    config = distilled(teacher_checkpoint=str(teacher_file), temperature=temperature, weight=weight)
    model = build(config)
    model.init_weights()
    images, samples = batch()
    losses = model.train()(images, samples, mode="loss")

    student, teacher = build(classifier()), build(classifier(8))
    student.load_state_dict(model.state_dict())  # strict: an ordinary classifier
    teacher.load_state_dict(torch.load(teacher_file)["state_dict"])
    scores, soft = student.train()(images), (teacher.eval()(images) / temperature).softmax(1)
    log_probs = (scores / temperature).log_softmax(1)
    divergence = (soft * (soft.log() - log_probs)).sum(1).mean()
    labels = torch.cat([sample.gt_label for sample in samples])
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(scores, labels))
    total, logged = model.parse_losses(losses)
    torch.testing.assert_close(total, losses["loss_cls"] + losses["loss_kd"])
    assert logged["loss"] == total
    torch.testing.assert_close(losses["loss_kd"], weight * temperature**2 * divergence)


def test_the_teacher_is_no_part_of_the_student(teacher_file):
    model = build(distilled(teacher_checkpoint=str(teacher_file)))
    model.init_weights()
    assert model.state_dict().keys() == build(classifier()).state_dict().keys()
    assert len(list(model.parameters())) == len(list(build(classifier()).parameters()))
    model._teacher_outputs(batch()[0])
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()  # as EMAHook does
    model.train()
    assert not any(module.training for module in model.teacher.modules())
    before = copy.deepcopy(model.teacher.state_dict())
    model.parse_losses(model(*batch(), mode="loss"))[0].backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_student_starts_as_without_a_teacher(teacher_file):
    states = []
    for config in (classifier(), distilled(teacher_checkpoint=str(teacher_file))):
        torch.manual_seed(5)
        model = build(config)
        model.init_weights()
        states.append((model.state_dict(), torch.rand(1)))
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())
    assert torch.equal(states[0][1], states[1][1])


def test_deployed_is_the_student_alone():
    config = dict(type="mmnetaug.NetAug", model=distilled(temperature=2.0, weight=0.5), width=[1, 2])
    student = without_netaug(config)
    assert student == classifier()
    assert build(student).state_dict().keys() == build(distilled()).state_dict().keys()


def test_the_teacher_moves_with_the_student():
    model = build(distilled()).to(torch.float64)
    assert next(model.teacher.parameters()).dtype == torch.float64


@pytest.mark.parametrize("to_rgb", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_teacher_reads_images_normalised_its_own_way(to_rgb, normalised):
    own = dict(mean=[127.0, 120.0, 110.0], std=[64.0, 60.0, 50.0], to_rgb=True)
    theirs = dict(mean=[100.0, 101.0, 102.0], std=[70.0, 71.0, 72.0]) if normalised else {}
    teacher = classifier(8, data_preprocessor=dict(theirs, to_rgb=to_rgb))
    model = build(distilled(teacher, data_preprocessor=own))
    raw = dict(inputs=torch.randint(0, 256, (2, 3, 32, 32)).float(), data_samples=None)
    given = model.data_preprocessor(raw)["inputs"]
    torch.testing.assert_close(model._renormalize(given), model.teacher.data_preprocessor(raw)["inputs"])


def test_a_teacher_without_a_preprocessor_reads_the_students_images():
    model = build(distilled(data_preprocessor=dict(mean=[127.0, 120.0, 110.0], std=[64.0, 60.0, 50.0])))
    images = torch.rand(2, 3, 32, 32)
    assert model._renormalize(images) is images


def test_both_passes_of_netaug_are_distilled_and_the_teacher_is_asked_once(teacher_file):
    """One step against two independent plain students."""
    torch.manual_seed(0)
    config = distilled(teacher_checkpoint=str(teacher_file), temperature=2.0)
    elastic = build(dict(type="mmnetaug.NetAug", model=config, width=[1, 1.5, 2], expand=[1, 1.5], input_size=32))
    elastic.init_weights()
    elastic = elastic.double().train()
    plain = build(config).double().train()
    plain.load_state_dict(base_state_dict(elastic))
    plain.teacher.load_state_dict(elastic.teacher.state_dict())
    widths = elastic.elastic.sample(seed=3, iteration=0)
    assert widths != elastic.elastic.base()
    networks = [plain, plain_at(elastic, plain, widths)]
    asked = []
    elastic.teacher.register_forward_hook(lambda *args: asked.append(1))

    images, samples = batch()
    images = images.double()
    wrapper = NetAugOptimWrapper(torch.optim.SGD(elastic.parameters(), lr=0.1), seed=3)
    with wrapper.optim_context(elastic):
        losses = elastic(images, samples, mode="loss")
    wrapper.update_params(elastic.parse_losses(losses)[0])
    assert len(asked) == 1

    gradient = 0
    for network in networks:
        network.parse_losses(network(images, samples, mode="loss"))[0].backward()
        gradient = gradient + network.head.fc.bias.grad
    before = plain.head.fc.bias.detach()
    torch.testing.assert_close(elastic.head.fc.bias.detach(), before - 0.1 * gradient, rtol=0, atol=1e-10)
    build(classifier()).load_state_dict(base_state_dict(elastic))  # strict: into the stock classifier


def test_new_images_in_the_same_memory_are_shown_to_the_teacher():
    """Whether they are written by torch, behind its version counter, or by whoever shares the memory."""
    torch.manual_seed(0)
    model = build(distilled())
    teacher, asked = copy.deepcopy(model.teacher), []
    model.teacher.register_forward_hook(lambda *args: asked.append(1))
    images = torch.rand(4, 3, 32, 32)
    refills = (
        lambda: None,
        lambda: images.copy_(torch.rand(4, 3, 32, 32)),
        lambda: images.data.copy_(torch.rand(4, 3, 32, 32)),
        lambda: images.numpy().fill(0.3),
    )
    for number, refill in enumerate(refills, 1):
        refill()
        scores = [model._teacher_outputs(images) for _ in range(2)]
        assert len(asked) == number
        with torch.no_grad():
            expected = teacher(images)
        assert all(torch.equal(one["head"][0], expected) for one in scores)


def wide_detector(kind: str, neck: int | None = None) -> dict:
    """A detector of ``CASES`` with a backbone twice as wide, and another width of RetinaNet's neck if one is given."""
    config = CASES[kind][0]()
    if kind == "retinanet":
        config["backbone"].update(base_channels=16, stem_channels=16)
        config["neck"]["in_channels"] = [32, 64, 128]
        if neck:
            config["neck"]["out_channels"] = config["bbox_head"]["in_channels"] = neck
    else:
        config["backbone"]["widen_factor"] = 0.7
        config["neck"]["in_channels"] = [112, 80, 32]
    return config


@pytest.mark.parametrize(("kind", "neck"), [("retinanet", None), ("retinanet", 24), ("yolov3", None)])
def test_a_detector_learns_from_necks_and_class_scores(kind, neck, tmp_path):
    """The formulas of the papers on what independent networks return; a wider neck is not compared."""
    config, data, divergences = CASES[kind]
    torch.manual_seed(0)
    teacher = MODELS.build(wide_detector(kind, neck)).double().eval()
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / "teacher.pth")
    taught_by = dict(teacher=wide_detector(kind, neck), teacher_checkpoint=str(tmp_path / "teacher.pth"))
    student = MODELS.build(dict(type="mmnetaug.Distilled", model=config(), temperature=2.0, weight=0.5, **taught_by))
    student.init_weights()
    student = student.double().train()
    plain = MODELS.build(config()).double().train()
    plain.load_state_dict(student.state_dict())  # strict: an ordinary detector

    losses = student(**data(), mode="loss")
    compared = {name: of for name, of in divergences.items() if not (neck and name == "neck")}
    loss, outputs = run_watched(plain, data(), list(compared))
    with torch.no_grad():
        _, targets = run_watched(teacher, data(), list(compared))
    pairs = {name: (list(map(exact, outputs[name])), list(map(exact, targets[name]))) for name in compared}
    expected = 0.5 * sum(of(*pairs[name], 2.0) for name, of in compared.items())
    assert expected > 1e-6
    torch.testing.assert_close(losses["loss_kd"], expected)
    torch.testing.assert_close(student.parse_losses(losses)[0], loss + expected)


def test_networks_without_outputs_of_the_same_shape_are_an_error():
    config = CASES["retinanet"][0]()
    teacher = wide_detector("retinanet", neck=24)
    teacher["bbox_head"]["anchor_generator"]["ratios"] = [0.5, 1.0, 2.0]
    student = MODELS.build(dict(type="mmnetaug.Distilled", model=config, teacher=teacher)).double()
    with pytest.raises(TypeError, match="no outputs of the same shape"):
        student(**CASES["retinanet"][1](), mode="loss")


def test_a_detectors_teacher_has_its_classes():
    teacher = wide_detector("retinanet")
    teacher["bbox_head"]["num_classes"] = 4
    with pytest.raises(ValueError, match="teacher has 4 classes and the student 3"):
        MODELS.build(dict(type="mmnetaug.Distilled", model=CASES["retinanet"][0](), teacher=teacher))


def test_a_detector_under_netaug_is_taught_in_both_passes(tmp_path):
    """The losses of both passes are those of independent plain students."""
    torch.manual_seed(0)
    teacher = wide_detector("yolov3")
    torch.save(dict(state_dict=MODELS.build(teacher).state_dict()), tmp_path / "teacher.pth")
    taught_by = dict(teacher=teacher, teacher_checkpoint=str(tmp_path / "teacher.pth"))
    elastic, plain = build_pair(dict(type="mmnetaug.Distilled", model=CASES["yolov3"][0](), **taught_by), torch.float64)
    plain._teacher = (copy.deepcopy(elastic.teacher),)  # which init_weights has loaded
    data, seen, original = detection_batch(2, 0, torch.float64), [], type(elastic).parse_losses
    networks = [plain_at(elastic, plain, elastic.elastic.sample(0, 0)), plain]
    expected = [network(**copy.deepcopy(data), mode="loss")["loss_kd"].item() for network in networks]
    elastic.parse_losses = lambda losses: seen.append(losses["loss_kd"].item()) or original(elastic, losses)
    wrapper = NetAugOptimWrapper(torch.optim.SGD(elastic.parameters(), lr=0.1))
    with wrapper.optim_context(elastic):
        losses = elastic(**data, mode="loss")
    wrapper.update_params(elastic.parse_losses(losses)[0])
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (distilled(classifier(8, classes=7)), "teacher has 7 classes and the student 5"),
        (distilled("absent.py"), "teacher's config cannot be read"),
    ],
)
def test_a_teacher_that_cannot_teach(config, message):
    with pytest.raises(ValueError, match=message):
        build(config)


def test_the_tools_report_such_a_teacher_as_the_users_error():
    cfg = Config(dict(default_scope="mmpretrain", model=distilled(classifier(8, classes=7))))
    with pytest.raises(UserError, match="cannot be built: ValueError: the teacher has 7 classes"):
        build_model(cfg)


@pytest.mark.parametrize("backbone_only", [False, True])
def test_a_teacher_without_weights(backbone_only):
    teacher = classifier(8)
    if backbone_only:
        teacher["backbone"]["init_cfg"] = dict(type="Pretrained", checkpoint="backbone.pth")
    with pytest.raises(ValueError, match="set teacher_checkpoint"):
        build(distilled(teacher)).init_weights()


def test_netaug_goes_around():
    inner = dict(type="mmnetaug.NetAug", model=classifier(), width=[1, 2], input_size=32)
    with pytest.raises(ValueError, match="put NetAug around Distilled"):
        build(dict(type="mmnetaug.Distilled", model=inner, teacher=classifier(8)))


def test_a_teacher_that_was_trained_with_netaug_or_a_teacher_is_plain(teacher_file):
    taught = dict(type="mmnetaug.Distilled", model=classifier(8), teacher=classifier(16))
    config = dict(type="mmnetaug.NetAug", model=taught, width=[1, 2], input_size=32)
    model = build(distilled(config, teacher_checkpoint=str(teacher_file)))
    assert type(model.teacher) is type(build(classifier(8)))


def test_a_teacher_with_the_weights_of_another_network(teacher_file, tmp_path):
    model = build(distilled(classifier(16), teacher_checkpoint=str(teacher_file)))
    with pytest.raises(UserError, match="checkpoint of another network"):
        check_pretrained(model, ReadOnce(), trusted=False)
    model = build(distilled(teacher_checkpoint=str(teacher_file)))
    assert check_pretrained(model, ReadOnce(), trusted=False) == [f"teacher's weights: from {teacher_file}"]
    weights = torch.load(teacher_file)["state_dict"]
    classes = [["a", "b", "c", "d", "e"], ["b", "a", "c", "d", "e"]]
    torch.save(dict(state_dict=weights, meta=dict(dataset_meta=dict(classes=classes[0]))), tmp_path / "of_classes.pth")
    model = build(distilled(teacher_checkpoint=str(tmp_path / "of_classes.pth")))
    check_pretrained(model, ReadOnce(), trusted=False, classes=classes[0])
    with pytest.raises(UserError, match="trained on other classes, or in another order"):
        check_pretrained(model, ReadOnce(), trusted=False, classes=classes[1])
    torch.save({name: value for name, value in weights.items() if "fc" not in name}, tmp_path / "headless.pth")
    model = build(distilled(teacher_checkpoint=str(tmp_path / "headless.pth")))
    with pytest.raises(UserError, match="2 are absent"):
        check_pretrained(model, ReadOnce(), trusted=False)


def test_a_teacher_named_by_its_config(tmp_path):
    (tmp_path / "teacher.py").write_text(f"model = {classifier(8)}\ndata_preprocessor = dict(mean=[1.0], std=[2.0])\n")
    model = build(distilled(str(tmp_path / "teacher.py")))
    assert model.teacher.data_preprocessor.std.item() == 2.0
