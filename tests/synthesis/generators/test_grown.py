"""What CMI, Fast-DFKD and NAYER have in common."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.synthesis import moments
from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.cmi import CMI
from limbeck.synthesis.generators.fast import Fast
from limbeck.synthesis.generators.grown import GrownGenerator
from limbeck.synthesis.generators.nayer import NAYER

Make = Callable[..., GrownGenerator]
SMALL: dict[str, Any] = {"latent": 8, "channels": 4}
WAYS = {
    "fast": lambda setting, **options: Fast(setting, **{"g_steps": 2, **SMALL, **options}),
    "cmi": lambda setting, **options: CMI(setting, **{"g_steps": 2, "head": 8, "bank_size": 20, **SMALL, **options}),
    "nayer": lambda setting, **options: NAYER(setting, **{"g_steps": 2, "warmup_loops": 3, **SMALL, **options}),
}


@pytest.fixture(params=WAYS)
def make(request: pytest.FixtureRequest) -> Make:
    way: Make = WAYS[request.param]
    return way


def images(way: GrownGenerator, student: VisionModel | None, rounds: range) -> list[Tensor]:
    return [way.grow(student, round).images for round in rounds]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_round_is_a_balanced_batch_of_pictures(make: Make, setting: Setting, student: VisionModel) -> None:
    made = make(setting, warmup_rounds=0).grow(student, 0)
    assert made.images.shape == (len(made), 3, 16, 16) and not made.images.requires_grad
    assert made.images.min() >= 0 and made.images.max() <= 1
    assert made.asked is not None
    assert made.asked.bincount(minlength=4).tolist() == [len(made) // 4] * 4


def test_a_round_depends_on_seed_round_and_state_alone(make: Make, setting: Setting, student: VisionModel) -> None:
    first = images(make(setting, warmup_rounds=1), student, range(3))
    torch.manual_seed(99)
    second = make(setting, warmup_rounds=1)
    again = []
    for round in range(3):
        torch.rand(7)
        with torch.inference_mode():
            again += images(second, student, range(round, round + 1))
    assert equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_a_run_that_was_stopped_goes_on_alike(make: Make, setting: Setting, student: VisionModel) -> None:
    whole = make(setting, warmup_rounds=1)
    first = images(whole, student, range(2))
    state = copy.deepcopy(whole.state_dict())
    rest = images(whole, student, range(2, 4))
    resumed = make(setting, warmup_rounds=1)
    resumed.load_state_dict(state)
    assert equal(rest, images(resumed, student, range(2, 4)))
    assert len(first) == 2


def test_what_is_left_out_as_done_changes_nothing(make: Make, setting: Setting) -> None:
    way = make(setting)
    whole = torch.cat([made.images for made in way.make(28)])
    assert whole.shape[0] == 28
    assert torch.equal(torch.cat([made.images for made in way.make(28, done=16)]), whole[16:])


@pytest.mark.parametrize("kind", ["setting", "vit_setting"])
def test_teacher_and_student_stay_as_they_are(
    make: Make,
    kind: str,
    student: VisionModel,
    snapshot: Callable[[nn.Module], list[object]],
    request: pytest.FixtureRequest,
) -> None:
    setting: Setting = request.getfixturevalue(kind)
    before = snapshot(setting.teacher), snapshot(student)
    make(setting, warmup_rounds=0).grow(student, 0)
    assert (snapshot(setting.teacher), snapshot(student)) == before


def test_the_student_counts_after_the_warmup_only(make: Make, setting: Setting) -> None:
    # Of the teacher's opinion, but less sure: an agreement that leaves something to disagree about.
    student: Any = copy.deepcopy(setting.teacher)
    student.classifier.weight *= 0.5
    student.classifier.bias *= 0.5
    without, beside = make(setting, warmup_rounds=1), make(setting, warmup_rounds=1)
    assert without.reads_student and without.warmup_rounds == 1
    assert torch.equal(without.grow(None, 0).images, beside.grow(student, 0).images)
    assert "adv" not in beside.log()
    assert not torch.equal(without.grow(None, 1).images, beside.grow(student, 1).images)
    assert "adv" in beside.log()


def test_without_its_weight_the_student_is_not_read(make: Make, setting: Setting, student: VisionModel) -> None:
    way = make(setting, warmup_rounds=0, adv=0.0)
    assert not way.reads_student
    assert torch.equal(way.grow(student, 0).images, make(setting, warmup_rounds=0, adv=0.0).grow(None, 0).images)


def test_more_steps_bring_the_loss_further_down(make: Make, setting: Setting) -> None:
    losses = []
    for steps in (1, 12, 40):
        way = make(setting, g_steps=steps, lr_g=5e-3)
        way.grow(None, 0)
        losses.append(way.log()["loss"])
    assert losses[2] < losses[1] < losses[0]
    assert losses[2] < 0.9 * losses[0]


def test_a_transformer_gets_other_priors_and_a_note(make: Make, vit_setting: Setting, student: VisionModel) -> None:
    way = make(vit_setting, warmup_rounds=0, adv=0.0)
    assert any("no BatchNorm layers" in note for note in way.notes)
    way.grow(None, 0)
    assert {"heads", "diversity", "ce"} <= set(way.log()) and "bn" not in way.log()


@pytest.mark.parametrize("levels", ["none", "of one position"])
def test_a_teacher_without_maps_or_batchnorm_is_left_its_answers(
    make: Make, vit_setting: Setting, monkeypatch: pytest.MonkeyPatch, levels: str
) -> None:
    """Its attention cannot be read either."""
    model = copy.deepcopy(vit_setting.teacher)
    one = (replace(model.facts.levels[-1], grid=(1, 1)),) if levels == "of one position" else ()
    model.facts = replace(model.facts, levels=one)
    for module in ("priors.head_similarity", "priors.patch_similarity"):
        monkeypatch.setattr(f"limbeck.synthesis.{module}.attention_blocks", lambda model: [])
    way = make(replace(vit_setting, teacher=model), warmup_rounds=0, adv=0.0)
    assert any("the diversity of patches is left out" in note for note in way.notes)
    assert any("in their place stands nothing." in note for note in way.notes)
    way.grow(None, 0)
    assert {"ce"} <= set(way.log()) <= {"ce", "contrast", "loss", "agreement"}


def test_stored_moments_are_matched_where_there_are_any(make: Make, vit_setting: Setting, tmp_path: Path) -> None:
    teacher, path = vit_setting.teacher, tmp_path / "moments.safetensors"
    moments.save(path, moments.collect(teacher, [{"image": torch.rand(4, 3, 16, 16)}], torch.device("cpu")))
    way = make(replace(vit_setting, statistics=str(path)))
    assert any("token moments" in note for note in way.notes)
    way.grow(None, 0)
    assert way.log()["moments"] > 0


def test_the_best_pictures_are_copies_of_the_lowest_loss(setting: Setting) -> None:
    way = Fast(setting, g_steps=1, oh=1.0, bn=0.0, **SMALL)
    asked = way.asked(0, 4)
    start = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    # So large a step that the second pictures are worse than the first.
    parameter = start.clone().requires_grad_()
    ascent = torch.optim.SGD([parameter], lr=50.0, maximize=True)
    torch.manual_seed(0)
    best = way.descend(lambda: parameter * 1.0, asked, None, [ascent], 2)
    assert torch.equal(best, start)
    assert not torch.equal(parameter.detach(), start)


def test_a_loss_without_terms_is_refused(make: Make, setting: Setting) -> None:
    with pytest.raises(UserError, match="no term of the loss is left"):
        make(setting, bn=0.0, oh=0.0)
    with pytest.raises(UserError, match="oh is -1"):
        make(setting, oh=-1.0)
    with pytest.raises(UserError, match="g_steps is 0"):
        make(setting, g_steps=0)
