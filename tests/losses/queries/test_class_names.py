import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.class_names import (
    ClassMap,
    class_divergence,
    class_notes,
    foreground,
    restrict,
    shared_classes,
    sigmoid_to_softmax,
    softmax_to_sigmoid,
)


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_names_meet_exactly_first_then_without_regard_to_spelling(detector) -> None:
    teacher = detector("t", classes=("Dog", "traffic_light", "zebra", "dog", "person"))
    own, other = shared_classes(detector("s", classes=("person", "traffic light", "dog", "boat")), teacher)
    assert own.tolist() == [0, 1, 2]
    assert other.tolist() == [4, 1, 3]
    own, other = shared_classes(detector("s", classes=("DOG", "dog")), teacher)
    assert (own.tolist(), other.tolist()) == ([0, 1], [0, 3])


def test_a_slotted_map_and_a_contiguous_one_meet_name_by_name(detector) -> None:
    contiguous = tuple(f"class {i}" for i in range(80))
    reordered = tuple(f"Class_{(37 * i) % 80}" for i in range(80))
    own, other = shared_classes(detector(classes=contiguous), detector(classes=reordered))
    assert own.tolist() == list(range(80))
    assert [reordered[i].replace("C", "c").replace("_", " ") for i in other.tolist()] == list(contiguous)


def test_no_name_in_common_is_refused_with_both_lists(detector) -> None:
    teacher = detector("big", classes=tuple(f"animal {i}" for i in range(12)))
    with pytest.raises(
        UserError, match=r"big and the student small have no class.*animal 9 and 2 more.*person, traffic"
    ):
        shared_classes(detector("small"), teacher)


def test_the_note_names_what_the_teacher_does_not_know(detector) -> None:
    assert class_notes("query_kd", detector(), detector()) == ()
    (note,) = class_notes("query_kd", detector(), detector("t", classes=("dog", "PERSON")))
    assert "traffic light, cat;" in note and "person" not in note


def test_restricting_a_softmax_keeps_the_probabilities_of_the_rest() -> None:
    x, indices = logits(3, 6), torch.tensor([4, 1])
    p, q = x.softmax(-1), restrict(x, indices, "softmax").softmax(-1)
    torch.testing.assert_close(q[:, :2], p[:, [4, 1]])
    torch.testing.assert_close(q[:, 2], p[:, [0, 2, 3, 5]].sum(1))
    torch.testing.assert_close(restrict(x, torch.arange(5), "softmax"), x)
    torch.testing.assert_close(restrict(x, indices, "sigmoid"), x[:, [4, 1]])


def test_a_softmax_becomes_the_probabilities_of_its_classes() -> None:
    x = logits(5, 4, scale=5.0)
    scores, p = softmax_to_sigmoid(x).sigmoid(), x.softmax(-1)
    torch.testing.assert_close(scores, p[:, :-1])
    # that is the distribution over the classes of an object, times the probability of an object
    of_object = x[:, :-1].softmax(-1)
    torch.testing.assert_close(scores, of_object * foreground(x, "softmax")[:, None])


def test_sigmoids_become_a_distribution_with_the_missing_score_as_no_object() -> None:
    x = logits(5, 4)
    p, s = sigmoid_to_softmax(x).exp(), x.sigmoid()
    torch.testing.assert_close(p.sum(-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(p[:, -1], 1 - s.amax(-1))
    torch.testing.assert_close(p[:, :-1] / p[:, :1], s / s[:, :1])
    torch.testing.assert_close(foreground(sigmoid_to_softmax(x), "softmax"), foreground(x, "sigmoid"))


def test_of_one_class_the_two_kinds_say_the_same() -> None:
    x = logits(7, 1)
    torch.testing.assert_close(softmax_to_sigmoid(sigmoid_to_softmax(x)), x)


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_extreme_logits_convert_to_finite_ones(value: float) -> None:
    x = torch.tensor([[value, 0.0, -value], [value, value, value]])
    for converted in (softmax_to_sigmoid(x), sigmoid_to_softmax(x)):
        assert torch.isfinite(converted).all()
    for kind in ("softmax", "sigmoid"):
        own = x.clone().requires_grad_()
        divergence = class_divergence(own, x.flip(0).roll(1, 1), kind)
        divergence.sum().backward()
        assert torch.isfinite(divergence).all() and torch.isfinite(own.grad).all()


def test_divergences_equal_slow_loops() -> None:
    own, other, temperature = logits(1, 3), logits(1, 3, seed=1), 2.0
    s, t = (own / temperature).tolist()[0], (other / temperature).tolist()[0]
    ps, pt = ([math.exp(v) / sum(map(math.exp, x)) for v in x] for x in (s, t))
    expected = temperature**2 * sum(b * math.log(b / a) for a, b in zip(ps, pt, strict=True))
    assert class_divergence(own, other, "softmax", temperature).item() == pytest.approx(expected)
    ps, pt = ([1 / (1 + math.exp(-v)) for v in x] for x in (s, t))
    expected = temperature**2 * sum(
        b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a)) for a, b in zip(ps, pt, strict=True)
    )
    assert class_divergence(own, other, "sigmoid", temperature).item() == pytest.approx(expected)


def test_sigmoid_divergence_has_the_gradient_of_cross_entropy_with_soft_labels() -> None:
    own, other = logits(4, 3).requires_grad_(), logits(4, 3, seed=1)
    (actual,) = torch.autograd.grad(class_divergence(own, other, "sigmoid").sum(), own)
    torch.testing.assert_close(actual, own.detach().sigmoid() - other.sigmoid())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_map_between_differently_ordered_classes_finds_them_again(kind: str, detector) -> None:
    student = detector(scores=kind)
    order = [2, 0, 3, 1]
    teacher = replace(student, class_names=tuple(student.class_names[i].upper() for i in order))
    classes = ClassMap(student, teacher)
    x = logits(2, 5, 4 + (kind == "softmax"))
    shown = x[..., [*order, 4] if kind == "softmax" else order]
    torch.testing.assert_close(classes.of_teacher(shown), classes.of_student(x))


def test_mixed_kinds_arrive_in_the_students(detector) -> None:
    soft, sig = detector(scores="softmax"), detector(scores="sigmoid")
    assert ClassMap(soft, sig).of_teacher(logits(2, 4)).shape == (2, 5)
    assert ClassMap(sig, soft).of_teacher(logits(2, 5)).shape == (2, 4)


def test_labels_that_the_teacher_lacks_have_no_place(detector) -> None:
    classes = ClassMap(detector(), detector("t", classes=("cat", "person")))
    assert classes.places[torch.tensor([0, 1, 2, 3])].tolist() == [0, -1, -1, 1]
    # and their score is the student's own affair: it changes nothing on the shared classes of a sigmoid head
    assert classes.of_student(logits(2, 5)).shape == (2, 3)
