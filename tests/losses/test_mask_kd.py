from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.detection import DetectionOutputs, DetectorFacts, Predictions
from limbeck.errors import UserError
from limbeck.losses.mask_kd import MaskQueryKD, mask_query_loss, mask_query_matching
from limbeck.outputs import ModelFacts

NAMES = ("person", "dog", "cat")
SIZES = ((64, 64), (64, 64))


def facts(name: str = "eomt", classes: tuple[str, ...] = NAMES, **others: Any) -> DetectorFacts:
    return DetectorFacts(
        name=name,
        num_classes=len(classes),
        input_size=(64, 64),
        levels=(),
        pooled_channels=0,
        class_names=classes,
        **{"family": "mask_queries", "scores": "softmax", "has_masks": True, **others},
    )


def answers(
    queries: int = 5, grid: tuple[int, int] = (6, 7), layers: int = 1, seed: int = 0, slots: int = 4
) -> DetectionOutputs:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

    made = (Predictions(random(2, queries, slots), masks=random(2, queries, *grid)) for _ in range(layers))
    return DetectionOutputs((64, 64), SIZES, predictions=tuple(made))


def changed(outputs: DetectionOutputs, change: Callable[[Tensor], Tensor]) -> DetectionOutputs:
    """The same change of all logits and all masks."""
    layers = tuple(Predictions(change(each.logits), masks=change(each.masks)) for each in outputs.predictions)  # type: ignore[arg-type]
    return replace(outputs, predictions=layers)


@torch.no_grad()
def slow(student: DetectionOutputs, teacher: DetectionOutputs, least: float) -> float:
    """One layer on equal grids, by going through all assignments and all cells."""
    total, weights = 0.0, 0.0
    own, other = student.predictions[0], teacher.predictions[0]
    assert own.masks is not None and other.masks is not None
    for image in range(2):
        p_own, p_other = own.logits[image].softmax(-1), other.logits[image].softmax(-1)
        sure = [q for q in range(len(p_other)) if 1 - p_other[q, -1] >= least]
        cost = {}
        for q in range(len(p_own)):
            for t in sure:
                mask, hard = own.masks[image, q].flatten().sigmoid(), (other.masks[image, t].flatten() > 0).double()
                cross = -(hard * mask.log() + (1 - hard) * (1 - mask).log()).mean()
                dice = 1 - (2 * (mask * hard).sum() + 1) / (mask.sum() + hard.sum() + 1)
                cost[q, t] = float(5 * cross + 5 * dice - 2 * p_own[q, p_other[t, :-1].argmax()])
        above = 2 * max(cost.values()) - min(cost.values())
        best = min(
            permutations(range(len(p_own)), len(sure)),
            key=lambda taken: sum(
                float(1 - p_other[t, -1]) * (cost[q, t] - above) for q, t in zip(taken, sure, strict=True)
            ),
        )
        for q, t in zip(best, sure, strict=True):
            soft_own, soft_other = (logits[image].div(2).softmax(-1) for logits in (own.logits, other.logits))
            kl = 4 * (soft_other[t] * (soft_other[t] / soft_own[q]).log()).sum()
            s, truth = own.masks[image, q].sigmoid(), other.masks[image, t].sigmoid()
            cells = truth * (truth / s).log() + (1 - truth) * ((1 - truth) / (1 - s)).log()
            dice = (s - truth).abs().sum() / (s.sum() + truth.sum() + 1)
            weight = float(1 - p_other[t, -1])
            total += weight * float(kl + 5 * cells.mean() + 5 * dice)
            weights += weight
    return total / max(weights, 1)


@pytest.mark.parametrize("least", [0.0, 0.5])
def test_the_loss_is_its_formula(least: float) -> None:
    student, teacher = answers(), answers(seed=1)
    loss = MaskQueryKD(facts(), facts(), min_score=least)(student, teacher)
    assert float(loss.detach()) == pytest.approx(slow(student, teacher, least), rel=1e-9)


def test_layers_are_added_and_each_learns_from_the_teachers_last() -> None:
    student, teacher = answers(layers=3), answers(layers=2, seed=1)
    method = MaskQueryKD(facts(), facts())
    last = replace(teacher, predictions=teacher.predictions[-1:])
    alone = [method(replace(student, predictions=(layer,)), last) for layer in student.predictions]
    torch.testing.assert_close(method(student, teacher), torch.stack(alone).sum())
    torch.testing.assert_close(MaskQueryKD(facts(), facts(), layers="last")(student, teacher), alone[-1])


def test_a_student_like_its_teacher_has_no_loss_and_no_gradient() -> None:
    student = answers(layers=2)
    teacher = changed(replace(student, predictions=student.predictions[:1] * 2), lambda tensor: tensor.detach())
    student = replace(student, predictions=student.predictions[:1])
    loss = MaskQueryKD(facts(), facts())(student, teacher)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    for tensor in (student.predictions[0].logits, student.predictions[0].masks):
        assert tensor is not None and tensor.grad is not None
        assert tensor.grad.abs().max() < 1e-12


def test_the_order_of_either_ones_queries_does_not_matter() -> None:
    student, teacher, method = answers(), answers(seed=1), MaskQueryKD(facts(), facts())
    expected = method(student, teacher)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(method(changed(student, lambda t: t[:, order]), teacher), expected)
    torch.testing.assert_close(method(student, changed(teacher, lambda t: t[:, order])), expected)


def test_the_gradient_reaches_the_students_classes_and_masks_and_never_the_teacher() -> None:
    student, teacher = answers(), answers(seed=1)
    MaskQueryKD(facts(), facts(), min_score=0.0)(student, teacher).backward()
    own, other = student.predictions[0], teacher.predictions[0]
    assert own.masks is not None and other.masks is not None
    assert own.logits.grad is not None and (own.logits.grad != 0).all()
    assert own.masks.grad is not None and (own.masks.grad != 0).all()
    assert other.logits.grad is None and other.masks.grad is None


def test_gradients_agree_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, masks, other, drawn = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 3), (2, 3, 3), (2, 3), (2, 4, 5))
    )
    weight = torch.tensor([0.9, 0.4], dtype=torch.float64)
    inputs = (logits.requires_grad_(), masks.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: mask_query_loss(a, b, other, drawn, weight, "softmax"), inputs)


@pytest.mark.parametrize(("own", "other"), [(3, 6), (6, 3)])
def test_sets_of_unequal_numbers_are_matched_as_far_as_the_smaller_goes(own: int, other: int) -> None:
    student, teacher = answers(own).predictions[0], answers(other, (3, 5), seed=1).predictions[0]
    assert student.masks is not None and teacher.masks is not None
    match = mask_query_matching(student.logits, student.masks, teacher.logits, teacher.masks, "softmax")
    assert match.image.tolist() == [0] * 3 + [1] * 3
    for image in range(2):
        chosen = match.image == image
        assert len(set(match.own[chosen].tolist())) == len(set(match.other[chosen].tolist())) == 3


def test_a_mask_on_a_finer_grid_is_the_same_mask() -> None:
    """Masks that rise evenly from left to right are read the same off any grid, up to its edges."""
    weight, logits = torch.ones(1), torch.zeros(1, 3)

    def ramp(cells: int) -> Tensor:
        return ((torch.arange(cells) + 0.5) / cells).expand(1, 4, -1) * 6 - 3

    def loss(own: int, other: int) -> float:
        return float(mask_query_loss(logits, ramp(own), logits, ramp(other), weight, "softmax"))

    assert loss(40, 40) == 0
    assert loss(40, 400) < 2e-3
    flat = mask_query_loss(logits, ramp(40), logits, torch.zeros(1, 4, 40), weight, "softmax")
    assert loss(40, 400) < 0.005 * float(flat)


def test_queries_that_the_teacher_takes_for_nothing_teach_nothing() -> None:
    student, teacher = answers(), answers(seed=1)
    empty = teacher.predictions[0].logits.detach() + torch.tensor([0.0, 0, 0, 1000])
    teacher = replace(teacher, predictions=(replace(teacher.predictions[0], logits=empty),))
    loss = MaskQueryKD(facts(), facts())(student, teacher)
    loss.backward()
    assert float(loss.detach()) == 0
    assert student.predictions[0].masks is not None
    assert student.predictions[0].masks.grad is not None and not student.predictions[0].masks.grad.any()


def test_a_sure_object_gets_its_query_at_the_expense_of_unsure_ones() -> None:
    """Two of the teacher's queries draw the same mask, and one of the student's fits it."""
    masks = torch.full((1, 2, 4, 4), -9.0)
    masks[:, 0] = 9
    teacher = torch.tensor([[[0.0, -9, 2], [9, -9, 0]]])
    match = mask_query_matching(torch.zeros(1, 2, 3), masks, teacher, masks[:, [0, 0]], "softmax")
    assert dict(zip(match.other.tolist(), match.own.tolist(), strict=True)) == {1: 0, 0: 1}


def test_padding_does_not_count() -> None:
    """What masks say beyond an image's own area (and half a cell at its edge) changes nothing."""
    student, teacher = answers(grid=(8, 8)), answers(grid=(8, 8), seed=1)
    student, teacher = (replace(each, sizes=((64, 64), (64, 24))) for each in (student, teacher))
    method = MaskQueryKD(facts(), facts())

    def other_padding(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().clone()
        if tensor.shape[-1] == 8:
            tensor[1, :, :, 4:] = 5
        return tensor

    expected = method(student, teacher)
    torch.testing.assert_close(method(changed(student, other_padding), changed(teacher, other_padding)), expected)
    whole = replace(student, sizes=SIZES)
    assert float(method(whole, teacher).detach()) != pytest.approx(float(expected.detach()))


def test_points_of_even_masks_may_be_drawn_anywhere() -> None:
    student, teacher = (changed(answers(seed=n), torch.detach) for n in range(2))

    def even(tensor: Tensor) -> Tensor:
        return tensor[..., :1, :1].expand_as(tensor) if tensor.ndim == 4 else tensor

    student, teacher = changed(student, even), changed(teacher, even)
    all_cells, drawn = (
        MaskQueryKD(facts(), facts(), num_points=count, dice_weight=0.0)(student, teacher) for count in (42, 41)
    )
    torch.testing.assert_close(all_cells, drawn)


def test_most_points_lie_where_the_student_is_unsure() -> None:
    """The masks differ in one column of forty only, where the student's logit is 0: a fortieth of all cells."""
    own = torch.full((1, 40, 40), 8.0)
    own[..., 20:] = -8
    own[..., 20] = 0
    other = own.clone()
    other[..., 20] = 3

    def loss(count: int) -> float:
        torch.manual_seed(0)
        even = torch.zeros(1, 2)
        return float(
            mask_query_loss(even, own, even, other, torch.ones(1), "softmax", dice_weight=0.0, num_points=count)
        )

    # Three quarters are the least sure of three times as many: rare places come 0.75 * 3 + 0.25 = 2.5 times as often, less
    # what interpolation between the columns takes away.
    assert 1.8 < loss(400) / loss(1600) < 2.5


def test_where_the_teacher_is_certain_dice_is_the_usual_one() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    hard = (torch.rand(3, 5, 5, generator=generator) > 0.5).double()
    even = torch.zeros(3, 2, dtype=torch.float64)
    found = mask_query_loss(
        even, masks, even, (hard - 0.5) * 200, torch.ones(3), "softmax", bce_weight=0.0, dice_weight=1.0
    )
    s, t = masks.sigmoid().flatten(1), hard.flatten(1)
    expected = 1 - (2 * (s * t).sum(1) + 1) / (s.sum(1) + t.sum(1) + 1)
    torch.testing.assert_close(found, expected.mean())


def test_classes_meet_by_name() -> None:
    student, teacher = answers(), answers(seed=1)
    method = MaskQueryKD(facts(), facts())
    order = torch.tensor([2, 0, 1, 3])
    turned = replace(
        teacher, predictions=(replace(teacher.predictions[0], logits=teacher.predictions[0].logits[..., order]),)
    )
    by_name = MaskQueryKD(facts(), facts("mask2former", ("cat", "person", "dog")))
    torch.testing.assert_close(by_name(student, turned), method(student, teacher))


@pytest.mark.parametrize("kinds", [("sigmoid", "softmax"), ("softmax", "sigmoid"), ("sigmoid", "sigmoid")])
def test_heads_of_either_kind_learn_from_each_other(kinds: tuple[str, str]) -> None:
    own, other = (facts(scores=kind, family="queries") for kind in kinds)
    student, teacher = (answers(slots=3 + (kind == "softmax"), seed=seed) for seed, kind in enumerate(kinds))
    loss = MaskQueryKD(own, other)(student, teacher)
    loss.backward()
    assert 0 < float(loss.detach()) < float("inf")


def test_models_and_options_that_do_not_fit_are_told() -> None:
    with pytest.raises(UserError, match="no class in common"):
        MaskQueryKD(facts(), facts("other", ("boat", "car", "bus")))
    with pytest.raises(UserError, match="classifier"):
        MaskQueryKD(facts(), ModelFacts("vit", 3, (64, 64), (), 8))
    with pytest.raises(UserError, match=r"boxes only\. Use query_kd"):
        MaskQueryKD(facts("detr", family="queries", has_masks=False), facts())
    with pytest.raises(UserError, match="drawn on boxes"):
        MaskQueryKD(facts(), facts("mask_rcnn", family="two_stage"))
    for option in ({"temperature": 0.0}, {"min_score": 1.0}, {"num_points": 3}):
        with pytest.raises(UserError, match=next(iter(option))):
            MaskQueryKD(facts(), facts(), **option)  # type: ignore[arg-type]
