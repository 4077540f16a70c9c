import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

from limbeck.errors import UserError
from limbeck.losses import QueryKD, build_losses, parse_methods, soft_prediction_loss
from limbeck.losses.box_overlap import corner_form
from limbeck.losses.query_loss import paired_layers
from limbeck.outputs import ModelFacts

KINDS = list(itertools.product(("softmax", "sigmoid"), repeat=2))


def slow(student, teacher, kinds: tuple[str, str], temperature: float, least: float) -> float:
    """One layer, classes in one order, by loops and plain probabilities."""
    own_kind, other_kind = kinds
    total, mass = 0.0, 0.0
    own_layer, other_layer = student.predictions[-1], teacher.predictions[-1]
    for image in range(len(own_layer.logits)):
        own = [scores_of(x, own_kind) for x in own_layer.logits[image]]
        other = [converted(x, other_kind, own_kind) for x in other_layer.logits[image]]
        weights = [(max(p) if own_kind == "sigmoid" else sum(p[:-1])) for p in other]
        kept = [j for j, w in enumerate(weights) if w >= least]
        boxes = own_layer.boxes[image].detach(), other_layer.boxes[image].detach()
        l1 = (boxes[0][:, None] - boxes[1][None]).abs().sum(-1)
        g = generalized_box_iou(*(corner_form(b) for b in boxes))
        names = 4
        cost = torch.zeros(len(own), len(kept), dtype=torch.float64)
        for i, (k, j) in itertools.product(range(len(own)), enumerate(kept)):
            best = max(range(names), key=lambda c, j=j: other[j][c])
            cost[i, k] = 5 * l1[i, j] + 2 * (1 - g[i, j]) - own[i][best]
        scaled = (cost - 2 * cost.max() + cost.min()) * torch.tensor([weights[j] for j in kept])
        for i, k in zip(*linear_sum_assignment(scaled.numpy()), strict=True):
            j = kept[k]
            s, t = (soften(p, own_kind, temperature) for p in (own[i], other[j]))
            if own_kind == "softmax":
                d = sum(b * math.log(b / a) for a, b in zip(s, t, strict=True))
            else:
                d = sum(b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a)) for a, b in zip(s, t, strict=True))
            total += weights[j] * (temperature**2 * d + 5 * l1[i, j].item() + 2 * (1 - g[i, j].item()))
            mass += weights[j]
    return total / max(mass, 1)


def scores_of(logits: Tensor, kind: str) -> list[float]:
    return (logits.softmax(-1) if kind == "softmax" else logits.sigmoid()).tolist()


def converted(logits: Tensor, kind: str, wanted: str) -> list[float]:
    p = scores_of(logits, kind)
    if kind == wanted:
        return p
    if wanted == "sigmoid":
        return p[:-1]
    return [max(p) * x / sum(p) for x in p] + [1 - max(p)]


def soften(p: list[float], kind: str, temperature: float) -> list[float]:
    if kind == "softmax":
        powers = [x ** (1 / temperature) for x in p]
        return [x / sum(powers) for x in powers]
    return [1 / (1 + ((1 - x) / x) ** (1 / temperature)) for x in p]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(("queries", "others"), [(6, 6), (4, 7), (7, 4)])
def test_equals_a_slow_formulation(kinds: tuple[str, str], queries: int, others: int, detector, answers) -> None:
    student, teacher = (detector(scores=kind) for kind in kinds)
    own, other = answers(student, queries), answers(teacher, others, seed=1)
    loss = QueryKD(student, teacher, temperature=2.0, min_score=0.5)
    assert loss(own, other).item() == pytest.approx(slow(own, other, kinds, 2.0, 0.5), rel=1e-6)


@pytest.mark.parametrize("kinds", KINDS)
def test_the_order_of_either_models_queries_does_not_matter(kinds, detector, answers, shuffled) -> None:
    student, teacher = (detector(scores=kind) for kind in kinds)
    own, other = answers(student, 8, layers=3), answers(teacher, 6, layers=2, seed=1)
    loss = QueryKD(student, teacher, layers="aligned")
    expected = loss(own, other)
    torch.testing.assert_close(loss(shuffled(own), other), expected)
    torch.testing.assert_close(loss(own, shuffled(other)), expected)


def test_nor_does_the_order_of_the_teachers_classes(detector, answers) -> None:
    student, order = detector(), [3, 1, 0, 2]
    renamed = replace(student, class_names=tuple(student.class_names[i].replace(" ", "_").upper() for i in order))
    own, other = answers(student), answers(student, seed=1)
    moved = replace(other.predictions[0], logits=other.predictions[0].logits[..., [*order, 4]])
    expected = QueryKD(student, student)(own, other)
    torch.testing.assert_close(QueryKD(student, renamed)(own, replace(other, predictions=(moved,))), expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_zero_and_without_gradient_where_the_student_is_the_teacher(kind: str, detector, answers, shuffled) -> None:
    facts = detector(scores=kind)
    own = answers(facts)
    loss = QueryKD(facts, facts, temperature=3.0)(own, shuffled(own))
    assert loss.item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, own.predictions[0].logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    assert QueryKD(facts, facts)(own, answers(facts, seed=3)) > 0.1


def test_gradients_are_right_and_the_teacher_gets_none(detector, answers) -> None:
    facts = detector(scores="sigmoid")
    own, other = answers(facts, 3), answers(facts, 3, seed=1)
    logits, boxes = own.predictions[0].logits, own.predictions[0].boxes
    loss = QueryKD(facts, facts)

    def value(logits: Tensor, boxes: Tensor) -> Tensor:
        return loss(replace(own, predictions=(replace(own.predictions[0], logits=logits, boxes=boxes),)), other)

    assert torch.autograd.gradcheck(value, (logits, boxes))
    value(logits, boxes).backward()
    assert other.predictions[0].logits.grad is None and other.predictions[0].boxes.grad is None


def test_layers_are_summed_over_the_students(detector, answers) -> None:
    facts = detector()
    own, other = answers(facts, layers=4), answers(facts, layers=2, seed=1)

    def single(i: int, j: int) -> Tensor:
        pair = (replace(x, predictions=(x.predictions[k],)) for x, k in ((own, i), (other, j)))
        return QueryKD(facts, facts, min_score=0.0)(*pair)

    def whole(layers: str) -> Tensor:
        return QueryKD(facts, facts, layers=layers, min_score=0.0)(own, other)

    torch.testing.assert_close(whole("last"), single(3, 1))
    torch.testing.assert_close(whole("all"), sum(single(i, 1) for i in range(4)))
    assert paired_layers(4, 2, "aligned") == ((0, 0), (1, 0), (2, 1), (3, 1))
    assert paired_layers(3, 6, "aligned") == ((0, 1), (1, 3), (2, 5))
    assert paired_layers(6, 3, "aligned") == ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2))
    assert whole("aligned") > 0


def test_a_teacher_that_sees_nothing_teaches_nothing_but_keeps_the_graph(detector, answers) -> None:
    facts = detector()
    own, other = answers(facts), answers(facts, seed=1)
    with torch.no_grad():
        other.predictions[0].logits[..., :-1] -= 50
    loss = QueryKD(facts, facts)(own, other)
    loss.backward()
    assert loss.item() == 0
    assert own.predictions[0].logits.grad.abs().sum() == 0


@pytest.mark.parametrize("kinds", KINDS)
def test_extreme_logits_stay_finite(kinds, detector, answers) -> None:
    student, teacher = (detector(scores=kind) for kind in kinds)
    own, other = (
        answers(student, scale=1e4, dtype=torch.float32),
        answers(teacher, seed=1, scale=1e4, dtype=torch.float32),
    )
    loss = QueryKD(student, teacher)(own, other)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(x.grad).all() for x in (own.predictions[0].logits, own.predictions[0].boxes))


def test_half_precision_is_computed_in_float32(detector, answers) -> None:
    facts = detector()
    own, other = answers(facts, dtype=torch.bfloat16), answers(facts, seed=1, dtype=torch.bfloat16)

    def in_float32(outputs):
        layer = outputs.predictions[0]
        return replace(outputs, predictions=(replace(layer, logits=layer.logits.float(), boxes=layer.boxes.float()),))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = QueryKD(facts, facts)(own, other)
    torch.testing.assert_close(loss, QueryKD(facts, facts)(in_float32(own), in_float32(other)), rtol=0, atol=0)


def test_classes_that_the_teacher_lacks_are_the_students_own_affair(detector, answers) -> None:
    student, teacher = detector(scores="sigmoid"), detector("t", scores="sigmoid", classes=("person", "cat"))
    loss = QueryKD(student, teacher)
    assert "traffic light, dog" in loss.notes[0]
    own = answers(student)
    loss(own, answers(teacher, seed=1)).backward()
    gradient = own.predictions[0].logits.grad
    assert gradient[..., [1, 2]].abs().sum() == 0 and gradient[..., [0, 3]].abs().sum() > 0


def test_without_pairs_the_mean_is_zero() -> None:
    empty = torch.zeros(0, 4, requires_grad=True)
    assert soft_prediction_loss(empty, empty, empty, empty, torch.zeros(0), "sigmoid").item() == 0


@pytest.mark.parametrize(
    ("family", "message"), [("two_stage", "roi_kd"), ("dense", "feature maps"), ("mask_queries", "mask_kd")]
)
def test_other_families_are_told_what_to_use(family: str, message: str, detector) -> None:
    with pytest.raises(UserError, match=f"the teacher other predicts otherwise.*{message}"):
        QueryKD(detector(), detector("other", family=family))


def test_classifiers_and_bad_options_are_refused(detector) -> None:
    classifier = ModelFacts("resnet", 4, (96, 96), (), 8)
    with pytest.raises(UserError, match="the student resnet is a classifier"):
        QueryKD(classifier, detector())
    for text, message in (
        ("query_kd(temperature=0)", "must be above 0"),
        ("query_kd(layers=first)", "one of 'last', 'all', 'aligned'"),
        ("query_kd(min_score=1.0)", "below 1"),
    ):
        with pytest.raises(UserError, match=message):
            build_losses(parse_methods(text), detector(), detector())
    (built,) = build_losses(parse_methods("query_kd"), detector(), detector())
    assert (built.weight, built.module.weights) == (1.0, {"class_weight": 1.0, "l1_weight": 5.0, "giou_weight": 2.0})
