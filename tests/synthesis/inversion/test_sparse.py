"""Which patches are fed, where they lie after a roll or flip, and that those which left are never touched again."""

import pytest
import torch
from torch import Tensor

from limbeck.models.attention import reading_attention
from limbeck.outputs import Request
from limbeck.synthesis.inversion.augment import Drawn, show
from limbeck.synthesis.inversion.engine import PixelInversion, Plan
from limbeck.synthesis.inversion.sparse import PatchCourse, class_attention, dropping, moved_patches, rebirth
from limbeck.synthesis.inversion.stages import Stage
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.terms import Term

from .conftest import VIT, setting, teacher

GRID, PATCH = (4, 4), (8, 8)


def numbered(batch: int = 1) -> Tensor:
    """Pictures whose pixels hold the number of their patch."""
    numbers = torch.arange(16.0).view(1, 1, *GRID).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return numbers.expand(batch, 3, 32, 32).clone()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("roll", [(0, 0), (8, -16), (-24, 8), (32, 40)])
def test_patches_follow_whole_patch_rolls_and_flips_exactly(roll: tuple[int, int], flip: bool) -> None:
    kept = torch.tensor([[0, 3, 6, 13], [1, 2, 15, 7]])
    shown = show(numbered(2), Drawn(roll=roll, flip=flip))[:, 0, ::8, ::8].flatten(1)
    moved = moved_patches(kept, GRID, PATCH, roll, flip)
    assert torch.equal(shown.gather(1, moved), kept.float())


@pytest.mark.parametrize(
    ("pixels", "patches"), [(3, 0), (4, 1), (5, 1), (11, 1), (12, 2), (-3, 0), (-5, -1), (-12, -1)]
)
def test_other_rolls_count_as_the_nearest_whole_patches(pixels: int, patches: int) -> None:
    moved = moved_patches(torch.tensor([[5]]), GRID, PATCH, (pixels, 0), False)
    assert moved.item() == (1 + patches) % 4 * 4 + 1


def test_smi_drops_the_published_shares() -> None:
    sparsity = dropping(0.3, (50 / 4000, 100 / 4000, 200 / 4000, 300 / 4000))
    assert sparsity.at(4000) == pytest.approx({50: 0.7, 100: 0.49, 200: 0.343, 300: 0.2401})
    assert sorted(sparsity.at(400)) == [5, 10, 20, 30]


def test_rebirth_finishes_equal_parts() -> None:
    assert rebirth(4).at(400) == pytest.approx({100: 0.75, 200: 0.5, 300: 0.25})
    course = PatchCourse(rebirth(4), (14, 14), torch.zeros(1, 3, 224, 224), 8)
    counts = []
    for step in sorted(course.moments):
        course.leave(step, torch.zeros(1, 3, 224, 224), torch.rand(1, course.kept.shape[1]))
        counts.append(course.kept.shape[1])
    assert counts == [147, 98, 49]


def test_moments_without_a_step_of_their_own_count_as_one() -> None:
    assert rebirth(4).at(2) == pytest.approx({1: 0.5}, abs=0.26)
    assert all(0 < step < 2 for step in rebirth(4).at(2))


def test_smi_drops_the_least_important_and_leaves_them_blank() -> None:
    course = PatchCourse(dropping(0.5, (0.5,)), GRID, numbered(), 2)
    importance = torch.rand(1, 16)
    course.leave(1, numbered(), importance)
    assert torch.equal(course.kept, importance.topk(8).indices.sort().values)
    finished, copies = course.finish(numbered() + 1)
    assert copies == 1
    fed = torch.zeros(16, dtype=torch.bool)
    fed[course.kept[0]] = True
    assert torch.equal(finished[0, 0, ::8, ::8].flatten() > 0, fed)


def test_rebirth_takes_the_most_important_first_and_keeps_them_as_they_were() -> None:
    course = PatchCourse(rebirth(2), GRID, numbered(), 2)
    importance = torch.arange(16.0).view(1, 16)
    course.leave(1, numbered(), importance)
    assert course.kept[0].tolist() == list(range(8))
    held = course.hold(torch.full((1, 3, 32, 32), -1.0))
    patches = held[0, 0, ::8, ::8].flatten()
    assert patches.tolist() == [-1.0] * 8 + list(range(8, 16))


def test_pieces_add_up_to_the_whole() -> None:
    course, pieces = (PatchCourse(rebirth(4, "random", form), GRID, numbered(2), 8) for form in ("whole", "pieces"))
    for step in (2, 4, 6):
        importance = torch.rand(2, course.kept.shape[1])
        for one in (course, pieces):
            torch.manual_seed(step)
            one.leave(step, numbered(2) + step, importance)
    whole, _ = course.finish(numbered(2) + 8)
    parts, copies = pieces.finish(numbered(2) + 8)
    assert copies == 4
    assert torch.equal(parts.view(4, 2, 3, 32, 32).sum(0), whole)
    assert ((parts.view(4, 2, 3, 32, 32) != 0).sum(0) == 1).all()


def test_class_attention_of_all_patches_is_that_of_the_plain_pass() -> None:
    model, images = teacher(VIT), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), reading_attention(model) as attentions:
        model.read(images, Request())
        expected = attentions[-1].class_attention().mean(1)
    torch.testing.assert_close(class_attention(model, images, None), expected)
    assert class_attention(model, images, torch.tensor([[3, 1, 2], [0, 4, 5]])).shape == (2, 3)


class _Watch(Prior):
    """Pulls every pixel towards a value that none has, and notes the pictures at each step."""

    needs = Needs()

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, seen: Seen) -> Tensor:
        self.seen.append(seen.images.detach().clone())
        return (seen.images - 0.123).square().mean()


@pytest.mark.parametrize("form", ["whole", "blank"])
def test_patches_that_left_are_never_touched_again(form: str) -> None:
    watch = _Watch()
    sparsity = rebirth(4) if form == "whole" else dropping(0.25, (0.25, 0.5, 0.75))
    way = PixelInversion(
        setting(batch=3),
        Plan((Term("watch", 1.0, watch),), (Stage(8, 0.05, 0.05, rolls=((8, 8),)),), sparsity=sparsity),
    )
    way.grow(None, 0)
    patches = torch.stack(watch.seen)[:, :, 0, ::8, ::8].flatten(2)
    moving = patches[1:] != patches[:-1]
    # Before step 2, 4 and 6 patches leave: what moves never comes back once it stands still.
    assert moving[:2].all()
    assert [int(step.sum(1)[0]) for step in moving[[2, 4, 6]]] == [12, 8, 4] if form == "whole" else [12, 9, 6]
    assert not (moving[1:] & ~moving[:-1]).any()
    fed = [16, 12, 8, 4] if form == "whole" else [16, 12, 9, 6]
    assert way.log()["fed"] == pytest.approx(sum(fed) / 64)


def test_rebirth_leaves_no_patch_unfinished() -> None:
    watch = _Watch()
    stages = (Stage(8, 0.05, 0.05),)
    way = PixelInversion(setting(batch=2), Plan((Term("watch", 1.0, watch),), stages, sparsity=rebirth(4)))
    made = way.grow(None, 0)
    start = watch.seen[0] * way.setting.teacher.std + way.setting.teacher.mean
    moved = (made.images - start).abs()[:, :, ::8, ::8].amax(1)
    assert (moved[start[:, :, ::8, ::8].amax(1) > 0.1] > 0).all()


def test_fed_tokens_reach_the_blocks() -> None:
    counts: list[int] = []
    block = teacher(VIT).get_submodule("network.blocks.1")
    handle = block.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].shape[1]))
    try:
        watch = _Watch()
        plan = Plan((Term("watch", 1.0, watch),), (Stage(4, 0.05, rolls=((3, 3),)),), sparsity=rebirth(4))
        PixelInversion(setting(batch=2), plan).grow(None, 0)
    finally:
        handle.remove()
    # One class token; a pass for the attention precedes each departure, and the finished pictures are read whole.
    assert counts == [17, 17, 13, 13, 9, 9, 5, 17]
