"""What every inversion does, whatever its terms are."""

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.synthesis.inversion.augment import Augmentation
from limbeck.synthesis.inversion.engine import PixelInversion, Plan
from limbeck.synthesis.inversion.invert import Invert
from limbeck.synthesis.inversion.stages import Stage
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.classes import ClassLoss
from limbeck.synthesis.priors.disagreement import Disagreement
from limbeck.synthesis.terms import Term

from .conftest import CNN, CONVNEXT, VIT, setting, teacher

TEACHERS = (VIT, CNN, CONVNEXT)


def class_only(name: str, iterations: int = 40, **settings: object) -> PixelInversion:
    given = setting(name, **settings)  # type: ignore[arg-type]
    return PixelInversion(given, Plan((Term("ce", 1.0, ClassLoss(given.teacher.facts)),), (Stage(iterations, 0.1),)))


@pytest.mark.parametrize("name", TEACHERS)
def test_random_teachers_read_the_pictures_as_asked(name: str) -> None:
    way = class_only(name, batch=5)
    made = way.grow(None, 0)
    assert made.asked is not None and sorted(made.asked.tolist()) == [0, 1, 2, 3, 4]
    assert way.log()["agreement"] >= 0.8
    assert made.images.shape == (5, 3, 32, 32)
    assert made.images.min() >= 0 and made.images.max() <= 1
    assert not made.images.requires_grad


@pytest.mark.parametrize("name", TEACHERS)
def test_the_loss_falls(name: str) -> None:
    plan = {"lr": 0.05, "color_shift": 0.0, "channel_offset": 0.0, "roll": 0, "sparse": "none"}
    early, late = (Invert(setting(name), iterations=n, **plan) for n in (1, 30))  # type: ignore[arg-type]
    for way in (early, late):
        way.grow(None, 0)
    assert late.log()["loss"] < early.log()["loss"] - 0.1


def test_seed_and_round_decide_every_pixel() -> None:
    first = Invert(setting(), iterations=4).grow(None, 1)
    torch.manual_seed(99)
    way = Invert(setting(), iterations=4)
    other = way.grow(None, 0)
    again = way.grow(None, 1)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.images, Invert(setting(seed=1), iterations=4).grow(None, 1).images)


def test_no_outer_random_number_is_used_up() -> None:
    state = torch.get_rng_state()
    Invert(setting(), iterations=2).grow(None, 0)
    assert torch.equal(state, torch.get_rng_state())


def test_make_goes_on_where_it_was_stopped() -> None:
    way = Invert(setting(), iterations=2)
    whole = torch.cat([made.images for made in way.make(10)])
    rest = torch.cat([made.images for made in way.make(10, done=8)])
    assert len(whole) == 10
    assert torch.equal(whole[8:], rest)


def test_classes_are_balanced_over_rounds() -> None:
    way = Invert(setting(batch=4), iterations=1, classes=[1, 3, 4])
    asked = torch.cat([way.grow(None, round).asked for round in range(3)])  # type: ignore[misc]
    assert asked.bincount(minlength=5).tolist() == [0, 4, 0, 4, 4]


@pytest.mark.parametrize("name", TEACHERS)
def test_teacher_and_student_stay_as_they_are(name: str) -> None:
    given = setting(name)
    torch.manual_seed(1)
    student = _student()
    before = [_copy(given.teacher), _copy(student)]
    way = Invert(given, iterations=3, disagreement=0.2)
    assert way.reads_student
    way.grow(student, 0)
    for model, state in zip((given.teacher, student), before, strict=True):
        now = model.state_dict()
        assert all(torch.equal(now[key], value) for key, value in state.items())
    assert student.training and not given.teacher.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in student.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in given.teacher.modules())


def test_a_student_changes_the_pictures_only_where_it_is_read() -> None:
    student = _student()
    for weight in (0.0, 5.0):
        way = Invert(setting(), iterations=3, disagreement=weight)
        same = torch.equal(way.grow(None, 0).images, way.grow(student, 0).images)
        assert same == (weight == 0)
        assert ("disagreement" in way.log()) == (weight > 0)


def test_a_loss_that_only_reads_a_student_needs_one() -> None:
    way = PixelInversion(setting(), Plan((Term("adi", 1.0, Disagreement()),), (Stage(2, 0.1),)))
    with pytest.raises(UserError, match="reads a student"):
        way.grow(None, 0)


class _Rising(Prior):
    """Worse at every look, while the gradient goes on pulling the pixels down."""

    needs = Needs()

    def __init__(self) -> None:
        self.looks = 0
        self.judged: list[Tensor] = []

    def __call__(self, seen: Seen) -> Tensor:
        self.looks += 1
        if not torch.is_grad_enabled():
            self.judged.append(seen.images.detach().clone())
        return self.looks + seen.images.mean()


def test_the_best_pictures_are_copies_of_what_was_judged() -> None:
    given, rising = setting(), _Rising()
    plan = Plan((Term("rising", 1.0, rising),), (Stage(10, 0.05, 0.05),), keep="best")
    made = PixelInversion(given, plan).grow(None, 0)
    assert len(rising.judged) == 10
    first, last = (images * given.teacher.std + given.teacher.mean for images in (rising.judged[0], rising.judged[-1]))
    torch.testing.assert_close(made.images, first.clamp(0, 1))
    assert (made.images - last).abs().max() > 0.01


def test_best_pictures_are_judged_without_augmentation() -> None:
    shapes: list[tuple[int, ...]] = []

    class Shapes(_Rising):
        def __call__(self, seen: Seen) -> Tensor:
            if not torch.is_grad_enabled():
                shapes.append(tuple(seen.shown.shape))
                assert torch.equal(seen.shown, seen.images)
            return super().__call__(seen)

    plan = Plan(
        (Term("shapes", 1.0, Shapes()),),
        (Stage(2, 0.05, rolls=((3, 3),)),),
        Augmentation(color_mean=1, color_scale=1, repeats=2),
        keep="best",
    )
    PixelInversion(setting(), plan).grow(None, 0)
    assert shapes == [(4, 3, 32, 32)] * 2


def test_channels_stay_in_the_range_of_pixels_at_every_step() -> None:
    given = setting()
    low, high = -given.teacher.mean / given.teacher.std, (1 - given.teacher.mean) / given.teacher.std

    class Out(Prior):
        needs = Needs()

        def __call__(self, seen: Seen) -> Tensor:
            assert (seen.images >= low).all() and (seen.images <= high).all()
            return -seen.images.square().mean()

    made = PixelInversion(given, Plan((Term("out", 1.0, Out()),), (Stage(10, 1.0),))).grow(None, 0)
    assert ((made.images < 1e-6) | (made.images > 1 - 1e-6)).float().mean() > 0.99


def test_pictures_of_another_size_than_the_teachers() -> None:
    way = class_only(VIT, size=(20, 24), batch=5)
    made = way.grow(None, 0)
    assert made.images.shape == (5, 3, 20, 24)
    assert way.log()["agreement"] >= 0.8


def test_pictures_are_made_in_inference_mode_too() -> None:
    expected = class_only(VIT, iterations=3).grow(None, 0)
    with torch.inference_mode():
        made = class_only(VIT, iterations=3).grow(None, 0)
    assert torch.equal(made.images, expected.images)


def test_numbers_that_are_none_are_reported() -> None:
    class Broken(Prior):
        needs = Needs()

        def __call__(self, seen: Seen) -> Tensor:
            return seen.images.mean() * float("nan")

    way = PixelInversion(setting(), Plan((Term("broken", 1.0, Broken()),), (Stage(2, 0.1),)))
    with pytest.raises(UserError, match="not finite"):
        way.grow(None, 0)


def test_an_unknown_normalisation_and_a_single_class_are_said() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3, stride=4)
            self.head = nn.Linear(4, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images).relu().mean((2, 3)))

    from limbeck.models.custom import CustomModel
    from limbeck.synthesis.base import Setting

    model = CustomModel(Plain(), text="plain:make", input_size=(16, 16))
    model.mean.fill_(0), model.std.fill_(1)
    way = Invert(Setting(model, (16, 16), batch_size=2), iterations=2)
    notes = " ".join(way.notes)
    assert "mean 0 and std 1" in notes and "one class only" in notes
    assert "ce" not in {term.name for term in way.plan.terms}
    assert way.grow(None, 0).images.isfinite().all()


def _student() -> VisionModel:
    model = teacher.__wrapped__(CNN)  # type: ignore[attr-defined]
    return model.requires_grad_(True).train()


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}
