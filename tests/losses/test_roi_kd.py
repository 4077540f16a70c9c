import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.detection import DetectionOutputs, Regions, Target
from limbeck.errors import UserError
from limbeck.losses import RoIKD, build_losses, parse_methods, region_box_loss, region_class_loss, region_mask_loss


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Head(torch.nn.Module):
    """Judges a box by its coordinates; so equal boxes get equal answers, whoever proposed them."""

    def __init__(self, num_classes: int, side: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.num_classes, self.side = num_classes, side
        self.logits = torch.nn.Linear(4, num_classes + 1).double()
        self.deltas = torch.nn.Linear(4, 4 * num_classes).double()
        self.masks = torch.nn.Linear(4, num_classes * side * side).double()

    def forward(self, asked: Regions) -> Regions:
        boxes = torch.cat(asked.boxes) / 10
        masks = None
        if asked.mask_boxes is not None:
            masks = self.masks(torch.cat(asked.mask_boxes) / 10).reshape(-1, self.num_classes, self.side, self.side)
        deltas = self.deltas(boxes).reshape(-1, self.num_classes, 4)
        return Regions(asked.boxes, self.logits(boxes), deltas, asked.mask_boxes, masks)


def boxes(count: int, seed: int) -> Tensor:
    corner = 40 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)).double()
    return torch.cat([corner, corner + 5 + 10 * features(count, 2, seed=seed + 1).abs()], dim=1)


TARGETS = [
    Target(torch.tensor([[0.0, 0, 10, 10], [20, 20, 50, 50]]), torch.tensor([0, 2])),
    Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
]
MASK_BOXES = (torch.tensor([[19.0, 21, 48, 52], [1, 0, 11, 9], [22, 18, 50, 47]]).double(), torch.zeros(0, 4).double())


def outputs(head: Head, masks: bool = True, counts: tuple[int, int] = (7, 4)) -> DetectionOutputs:
    asked = Regions(
        tuple(boxes(count, seed=i) for i, count in enumerate(counts)),
        torch.empty(0),
        torch.empty(0),
        MASK_BOXES if masks else None,
    )
    return DetectionOutputs((64, 64), ((64, 64),) * 2, regions=head(asked), read_regions=head)


def two_stage(detector, **more):
    return detector(**{"family": "two_stage", "has_masks": True, **more})


def slow_roi_kd(
    own: Regions, other: Regions, shared: list[tuple[int, int]], labels: list[int], tau: float
) -> dict[str, float]:
    """Region by region; classes that the other detector lacks count as background."""
    total = {"classes": 0.0, "boxes": 0.0, "masks": 0.0}
    for n in range(len(own.logits)):

        def shares(logits: Tensor, indices: list[int], by: float = 1.0) -> list[float]:
            rest = [v for i, v in enumerate(logits.tolist()) if i not in indices]
            kept = [logits[i].item() for i in indices] + [math.log(sum(map(math.exp, rest)))]
            total = sum(math.exp(v / by) for v in kept)
            return [math.exp(v / by) / total for v in kept]

        s = shares(own.logits[n], [a for a, _ in shared], tau)
        t = shares(other.logits[n], [b for _, b in shared], tau)
        total["classes"] += tau**2 * sum(q * math.log(q / p) for p, q in zip(s, t, strict=True))
        likely = shares(other.logits[n], [b for _, b in shared])[:-1]
        best = max(range(len(likely)), key=lambda i: likely[i])
        for side in range(4):
            d = abs((own.deltas[n, shared[best][0], side] - other.deltas[n, shared[best][1], side]).item())
            total["boxes"] += likely[best] * (d * d / 2 * 9 if d < 1 / 9 else d - 1 / 18)
    for name in ("classes", "boxes"):
        total[name] /= len(own.logits)
    cells = []
    for m, label in enumerate(labels):
        for a, b in shared:
            if a == label:
                for s, t in zip(
                    own.mask_logits[m, a].flatten().tolist(), other.mask_logits[m, b].flatten().tolist(), strict=True
                ):
                    p, q = 1 / (1 + math.exp(-s)), 1 / (1 + math.exp(-t))
                    cells.append(q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))
    total["masks"] = sum(cells) / len(cells)
    return total


@pytest.mark.parametrize(
    ("teacher_names", "shared"),
    [
        (("cat", "dog", "bird"), [(0, 0), (1, 1), (2, 2)]),
        (("bird", "tram", "Cat", "ship"), [(0, 2), (2, 0)]),
    ],
)
def test_equals_a_slow_loop_on_the_classes_that_both_know(teacher_names, shared, detector) -> None:
    student, teacher = two_stage(detector), two_stage(detector, class_names=teacher_names)
    own, other = outputs(Head(3)), outputs(Head(len(teacher_names), seed=1), counts=(3, 3))
    answers = other.read_regions(own.regions)
    expected = slow_roi_kd(own.regions, answers, shared, [2, 0, 2], 2.0)
    for name in expected:
        weights = {other_name: float(other_name == name) for other_name in expected}
        value = RoIKD(student, teacher, temperature=2.0, **weights)(own, other, TARGETS)
        assert value.item() == pytest.approx(expected[name], rel=1e-9), name
    value = RoIKD(student, teacher, temperature=2.0, classes=0.5, boxes=2.0, masks=3.0)(own, other, TARGETS)
    assert value.item() == pytest.approx(
        0.5 * expected["classes"] + 2 * expected["boxes"] + 3 * expected["masks"], rel=1e-9
    )


def test_both_heads_judge_the_students_regions(detector) -> None:
    """What the teacher would have proposed is never read."""
    facts = two_stage(detector)
    own, other = outputs(Head(3)), outputs(Head(3, seed=1), counts=(2, 9))
    loss = RoIKD(facts, facts)
    value = loss(own, other, TARGETS)
    assert torch.equal(value, loss(own, replace(other, regions=None), TARGETS))
    assert loss.student_request.regions and loss.teacher_request.read_regions
    assert not (loss.teacher_request.regions or loss.needs_labels)


def test_equal_heads_cost_nothing(detector) -> None:
    facts = two_stage(detector)
    own = outputs(Head(3))
    for target in (TARGETS, None):
        assert RoIKD(facts, facts)(own, outputs(Head(3), counts=(1, 1)), target).item() == pytest.approx(0, abs=1e-12)


def test_a_head_whose_classes_are_permuted_costs_nothing(detector) -> None:
    names, order = ("cat", "dog", "bird"), [2, 0, 1]
    student, teacher = two_stage(detector), two_stage(detector, class_names=tuple(names[i] for i in order))
    head = Head(3)

    def permuted(asked: Regions) -> Regions:
        a = head(asked)
        masks = None if a.mask_logits is None else a.mask_logits[:, order]
        return Regions(a.boxes, a.logits[:, [*order, 3]], a.deltas[:, order], a.mask_boxes, masks)

    own = outputs(head)
    other = replace(own, regions=None, read_regions=permuted)
    assert RoIKD(student, teacher)(own, other, TARGETS).item() == pytest.approx(0, abs=1e-12)
    assert RoIKD(student, student)(own, other, TARGETS).item() > 0.01


def test_the_order_of_regions_does_not_matter() -> None:
    student, teacher = features(6, 4), features(6, 4, seed=1)
    deltas = features(6, 3, 4), features(6, 3, 4, seed=1)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(region_class_loss(student[order], teacher[order]), region_class_loss(student, teacher))
    torch.testing.assert_close(
        region_box_loss(deltas[0][order], deltas[1][order], teacher[order]), region_box_loss(*deltas, teacher)
    )


def test_pictures_without_targets_teach_classes_and_boxes(detector) -> None:
    facts = two_stage(detector)
    own, other = outputs(Head(3)), outputs(Head(3, seed=1))
    expected = RoIKD(facts, facts, masks=0.0)(own, other, TARGETS)
    assert torch.equal(RoIKD(facts, facts)(own, other), expected)
    test_time = replace(own, regions=replace(own.regions, mask_boxes=None, mask_logits=None))
    assert torch.equal(RoIKD(facts, facts)(test_time, other, TARGETS), expected)


def test_the_teachers_masks_are_resized_to_the_students(detector) -> None:
    facts = two_stage(detector)
    own, other = outputs(Head(3, side=4)), outputs(Head(3, side=8, seed=1))
    labels, rows = torch.tensor([2, 0, 2]), torch.arange(3)
    masks = other.read_regions(own.regions).mask_logits[rows, labels]
    masks = F.interpolate(masks[:, None], (4, 4), mode="bilinear")[:, 0]
    expected = region_mask_loss(own.regions.mask_logits[rows, labels], masks)
    torch.testing.assert_close(RoIKD(facts, facts, classes=0.0, boxes=0.0)(own, other, TARGETS), expected)


def test_gradients_reach_the_student_and_not_the_teacher(detector) -> None:
    facts = two_stage(detector)
    head, guide = Head(3), Head(3, seed=1)
    value = RoIKD(facts, facts)(outputs(head), outputs(guide), TARGETS)
    value.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_gradients_match_finite_differences() -> None:
    teacher, deltas, masks = features(4, 4, seed=1), features(4, 3, 4, seed=2), features(4, 3, 3, seed=3)
    assert torch.autograd.gradcheck(lambda s: region_class_loss(s, teacher, 3.0), (features(4, 4).requires_grad_(),))
    assert torch.autograd.gradcheck(
        lambda s: region_box_loss(s, deltas, teacher), (features(4, 3, 4).requires_grad_(),)
    )
    assert torch.autograd.gradcheck(lambda s: region_mask_loss(s, masks), (features(4, 3, 3).requires_grad_(),))


def test_known_values() -> None:
    # (3/4, 1/4) against (1/2, 1/2); a sure "class 1" a distance 1 away on each side; σ = 3/4 against 1/2.
    three = torch.tensor([[math.log(3), 0.0]]).double()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert region_class_loss(torch.zeros(1, 2).double(), three).item() == pytest.approx(expected)
    sure = torch.tensor([[-50.0, 50.0, 0.0]]).double()
    ones = torch.ones(1, 2, 4).double()
    assert region_box_loss(0 * ones, ones, sure, beta=0.0).item() == pytest.approx(4)
    assert region_box_loss(0 * ones, ones, sure).item() == pytest.approx(4 * (1 - 1 / 18))
    background = torch.tensor([[0.0, 0.0, 50.0]]).double()
    assert region_box_loss(0 * ones, ones, background).item() < 1e-20
    masks = torch.full((1, 2, 2), math.log(3)).double()
    assert region_mask_loss(0 * masks, masks).item() == pytest.approx(expected)


def test_no_regions_and_no_masks_cost_nothing_and_have_gradients(detector) -> None:
    facts = two_stage(detector)
    head = Head(3)
    own = outputs(head, counts=(0, 0))
    value = RoIKD(facts, facts)(own, outputs(Head(3, seed=1)), [TARGETS[1]] * 2)
    value.backward()
    assert value.item() == 0
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in head.parameters())


def test_a_teacher_without_masks_teaches_the_rest(detector) -> None:
    student, teacher = two_stage(detector), two_stage(detector, has_masks=False)
    loss = RoIKD(student, teacher)
    assert loss.weights["masks"] == 0
    assert "predicts no masks" in loss.notes[0]
    own, other = outputs(Head(3)), outputs(Head(3, seed=1), masks=False)
    torch.testing.assert_close(
        loss(own, other, TARGETS), RoIKD(student, student, masks=0.0)(own, other, TARGETS), rtol=0, atol=0
    )


def test_half_precision_is_promoted_before_the_formula() -> None:
    student, teacher = (9 * features(5, 4, seed=seed).half() for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = region_class_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), region_class_loss(student.double(), teacher.double()), rtol=1e-5, atol=0)


def test_refusals(detector, pyramid) -> None:
    facts = two_stage(detector)
    with pytest.raises(UserError, match="the teacher detector judges none"):
        RoIKD(facts, detector())
    with pytest.raises(UserError, match="the student cnn judges none"):
        RoIKD(pyramid(), facts)
    with pytest.raises(UserError, match="no class in common"):
        RoIKD(facts, two_stage(detector, class_names=("tram",)))
    for text, message in [
        ("roi_kd(temperature=0)", "temperature is 0.0; it must be above 0"),
        ("roi_kd(beta=-1)", "beta is -1.0"),
        ("roi_kd(boxes=-1)", "boxes is -1.0; a weight must not be negative"),
        ("roi_kd(classes=0, boxes=0, masks=0)", "nothing would be learnt"),
    ]:
        with pytest.raises(UserError, match=message):
            build_losses(parse_methods(text), facts, facts)
    bare = two_stage(detector, has_masks=False)
    with pytest.raises(UserError, match="nothing would be learnt"):
        RoIKD(bare, bare, classes=0.0, boxes=0.0)
