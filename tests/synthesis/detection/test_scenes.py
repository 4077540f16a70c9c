"""Pictures made from tiny random detectors: what is promised of them, not whether they look like anything."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="the extra hf is not installed")

from tiny_detectors import NAMES, opened

from limbeck.detection import Found
from limbeck.errors import UserError
from limbeck.models.detection.base import Detector
from limbeck.synthesis.build import build_synthesis
from limbeck.synthesis.detection import scenes as module
from limbeck.synthesis.detection.base import DetectionSetting, MadeScenes, as_pictures
from limbeck.synthesis.detection.scene_loss import SceneLoss
from limbeck.synthesis.detection.scenes import Scenes
from limbeck.synthesis.names import SYNTHESES, parse_synthesis
from limbeck.synthesis.way import seeded

FAMILIES = ("faster_rcnn", "mask_rcnn", "retinanet", "yolos", "detr")
SIZE = (64, 96)
QUICK: dict[str, Any] = {
    "iterations": 3,
    "low_iterations": 4,
    "low_side": 32,
    "adapt_every": 1,
    "adapt_between": (0.5, 1.0),
    "augmentation": "roll_flip",
}


def setting_of(family: str, **options: Any) -> DetectionSetting:
    return DetectionSetting(copy.deepcopy(opened(family, "student")), SIZE, **({"batch_size": 2, "seed": 5} | options))


def make(setting: DetectionSetting, count: int = 2, done: int = 0, **options: Any) -> list[MadeScenes]:
    return list(Scenes(setting, **(QUICK | options)).make(count, done))


def same(first: MadeScenes, second: MadeScenes) -> bool:
    pairs = [(first.images, second.images)]
    for a, b in zip(first.targets, second.targets, strict=True):
        pairs += [(a.boxes, b.boxes), (a.labels, b.labels)]
        if a.masks is not None and b.masks is not None:
            pairs.append((a.masks, b.masks))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_scenes_are_pictures_with_targets_and_the_teacher_stays_as_it_was(family: str) -> None:
    setting = setting_of(family)
    teacher = setting.teacher
    before = {name: tensor.clone() for name, tensor in (*teacher.named_parameters(), *teacher.named_buffers())}
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in teacher.modules()]
    generator = torch.get_rng_state()
    way = Scenes(setting, **QUICK)
    (made,) = way.make(2)
    assert torch.equal(torch.get_rng_state(), generator)
    after = dict((*teacher.named_parameters(), *teacher.named_buffers()))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(part.training for part in teacher.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert hooks == [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in teacher.modules()]
    assert made.images.shape == (2, 3, *SIZE)
    assert not made.images.requires_grad
    assert made.images.min() >= 0 and made.images.max() <= 1
    for target in made.targets:
        assert len(target) >= 1
        assert (target.boxes[:, :2] >= 0).all() and (target.boxes[:, 2:] <= torch.tensor([96, 64])).all()
        assert (target.boxes[:, 2:] > target.boxes[:, :2]).all()
        assert (target.masks is not None) == teacher.facts.has_masks
        if target.masks is not None:
            assert target.masks.shape == (len(target), *SIZE) and target.masks.flatten(1).any(1).all()
    assert {"detection", "prior", "norm", "targets_per_picture"} == way.log().keys()
    assert all(torch.isfinite(torch.tensor(value)) for value in way.log().values())


@pytest.mark.parametrize("family", ["faster_rcnn", "yolos", "detr"])
def test_the_loss_on_the_labels_falls(family: str) -> None:
    setting = setting_of(family)
    alone: dict[str, Any] = {"low_iterations": 0, "augmentation": "none", "prior": "none", "norm_weight": 0.0}

    def last(iterations: int) -> float:
        way = Scenes(setting, iterations=iterations, **alone)
        list(way.make(2))
        return way.log()["detection"]

    assert last(10) < last(1)


def test_the_same_seed_gives_the_same_pictures_wherever_one_begins() -> None:
    setting, brief = setting_of("mask_rcnn"), {"iterations": 1, "low_iterations": 2}
    whole = make(setting, 5, **brief)
    assert [len(made) for made in whole] == [2, 2, 1]
    torch.manual_seed(99)
    for done, rest in ((2, whole[1:]), (4, whole[2:])):
        assert all(map(same, make(setting, 5, done, **brief), rest))
    within = make(setting, 5, 3, **brief)
    assert same(within[0], MadeScenes(whole[1].images[1:], whole[1].targets[1:]))
    assert make(setting, 5, 5, **brief) == []
    other = make(setting_of("mask_rcnn", seed=6), 2, **brief)
    assert not torch.equal(other[0].images, whole[0].images)


def test_labels_adapt_when_they_should_and_are_frozen_and_enlarged_then(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = setting_of("faster_rcnn")
    asked: list[torch.Size] = []

    def found(teacher: Detector, images: Tensor) -> list[Found]:
        asked.append(images.shape)
        box = torch.tensor([[0.0, 0, 12, 16], [24.0, 16, 36, 32]])  # of 32 x 48 pixels
        return [Found(box, torch.tensor([2, 0]), torch.tensor([0.9, 0.8]))] * len(images)

    monkeypatch.setattr(module, "find", found)
    options = QUICK | {"low_iterations": 10, "adapt_every": 2, "adapt_between": (0.3, 0.8)}
    way = Scenes(setting, **options)
    assert way.low_size == (32, 64)
    assert list(way.adapt_at) == [4, 6, 8]
    (made,) = way.make(2)
    assert asked == [(2, 3, 32, 64)] * 3
    for target in made.targets:
        # Enlarged from 32 x 64 to 64 x 96; what was placed at random is forgotten.
        assert sorted(target.boxes.tolist()) == [[0, 0, 18, 32], [36, 32, 54, 64]]


def test_final_labels_are_what_the_teacher_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    box = torch.tensor([[80.0, 50, 96, 64]])
    found = [Found(box, torch.tensor([1]), torch.tensor([0.7]))] * 2
    monkeypatch.setattr(module, "find", lambda teacher, images: found)
    targets, final = (
        make(setting_of("faster_rcnn"), low_iterations=0, labels=labels)[0].targets for labels in ("targets", "final")
    )
    for before, after in zip(targets, final, strict=True):
        assert after.scores is not None
        assert torch.equal(after.boxes[: len(before)], before.boxes)
        assert after.scores[: len(before)].tolist() == [0] * len(before)
        assert after.boxes[len(before) :].tolist() in ([], box.tolist())


def test_classes_are_balanced_over_pictures() -> None:
    made = make(setting_of("faster_rcnn", batch_size=3), 6, low_iterations=0)
    assert sorted(int(target.labels[0]) for batch in made for target in batch.targets) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("family", "prior"),
    [("faster_rcnn", "batch_statistics"), ("detr", "batch_statistics"), ("yolos", "diversity")],
)
def test_the_prior_is_what_the_teacher_can_give(family: str, prior: str) -> None:
    teacher = setting_of(family).teacher
    options: dict[str, Any] = {"detection_weight": "auto", "prior_weight": "auto", "tv_weight": 0.5, "norm_weight": 0.5}
    found = {}
    for name in ("auto", prior):
        loss = SceneLoss(teacher, prior=name, **options)  # type: ignore[arg-type]
        images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
        target = make(DetectionSetting(teacher, SIZE), 2, low_iterations=0, iterations=1)[0].targets
        with seeded(torch.device("cpu"), 1), loss.watching():
            total, terms = loss(images, target, images)
        weighted = sum(loss.weights[name] * float(term.detach()) for name, term in terms.items())
        assert float(total.detach()) == pytest.approx(weighted, rel=1e-5)
        assert terms.keys() == {"detection", "prior", "total_variation", "norm"}
        (gradient,) = torch.autograd.grad(terms["prior"], images)
        assert gradient.abs().max() > 0
        found[name] = float(terms["prior"].detach())
    assert found["auto"] == found[prior]


def test_the_statistics_of_a_two_stage_teacher_are_those_of_whole_pictures() -> None:
    teacher = setting_of("faster_rcnn").teacher
    loss = SceneLoss(teacher, prior="auto", detection_weight=1.0, prior_weight=1.0, tv_weight=0.0, norm_weight=0.0)
    network: Any = teacher.network
    assert loss.watched is network.backbone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenes(iterations=0)", "iterations is 0"),
        ("scenes(adapt_between=(0.8, 0.2))", "adapt_between"),
        ("scenes(low_side=8)", "low_side"),
        ("scenes(norm_weight=-1.0)", "norm is -1.0"),
        ("scenes(prior=patch_similarity)", "no attention that can be read"),
        ("scenes(labels=none)", "labels"),
        ("scenes(steps=3)", "no option 'steps'"),
    ],
)
def test_wrong_options_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_synthesis(parse_synthesis(text, "detection")[0], setting_of("retinanet"))  # type: ignore[arg-type]


def test_how_far_it_is_is_told_of_each_resolution_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr("limbeck.synthesis.pace.time", type("time", (), {"monotonic": lambda: float(next(clock))}))
    said: list[str] = []
    told = make(setting_of("retinanet", say=said.append), iterations=4)
    assert same(told[0], make(setting_of("retinanet"), iterations=4)[0])
    assert [line.partition(", detection")[0] for line in said] == [
        f"    step 3 of 4, about 6 s left of these 2 scenes at the {which} resolution" for which in ("low", "full")
    ]
    assert len(list(clock)) == 167 - 8


def test_the_name_stands_for_this_class_and_short_runs_say_that_labels_never_adapt() -> None:
    (spec,) = parse_synthesis("scenes(low_iterations=50, adapt_between=[0.1, 0.9])", "detection")
    assert SYNTHESES["scenes"].path == f"{Scenes.__module__}:Scenes"
    way: Any = build_synthesis(spec, setting_of("faster_rcnn"))  # type: ignore[arg-type]
    assert isinstance(way, Scenes)
    assert any("never adapt" in note for note in way.notes)
    assert way.setting.class_names == NAMES


def test_pictures_are_padded_as_loaders_do() -> None:
    pictures = as_pictures(torch.ones(2, 3, 50, 64))
    assert (pictures.size, pictures.sizes) == ((64, 64), ((50, 64), (50, 64)))
    assert pictures.images.sum() == 2 * 3 * 50 * 64
