import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import NKD, nkd_loss

STUDENT = torch.tensor([[2, 0.5, -1, 0], [0.3, 1.2, 0.1, -0.7]], dtype=torch.float64)
TEACHER = torch.tensor([[3, 1, -2, 0.5], [0, 2.5, 1, -1]], dtype=torch.float64)
TARGET = torch.tensor([0, 2])


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("temperature", "gamma", "expected"),
    [(1.0, 1.5, 1.3292598090), (1.0, 1.0, 0.9811287295), (3.0, 3.5, 32.6074202131), (1.0, 0.0, 0.2848665703)],
)
def test_known_vectors(temperature: float, gamma: float, expected: float) -> None:
    assert nkd_loss(STUDENT, TEACHER, TARGET, gamma, temperature).item() == pytest.approx(expected, abs=1e-9)


def test_equals_a_slow_loop() -> None:
    student, teacher, target = logits(3, 6), logits(3, 6, seed=1), [5, 0, 3]
    gamma, temperature, first, second = 1.5, 2.0, 0.0, 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), target, strict=True):
        log_s = s[y] - math.log(sum(map(math.exp, s)))
        first -= math.exp(t[y]) / sum(map(math.exp, t)) * log_s
        rest_s = [x / temperature for i, x in enumerate(s) if i != y]
        rest_t = [x / temperature for i, x in enumerate(t) if i != y]
        for a, b in zip(rest_s, rest_t, strict=True):
            log_q = a - math.log(sum(map(math.exp, rest_s)))
            second -= math.exp(b) / sum(map(math.exp, rest_t)) * log_q
    expected = first / 3 + gamma * temperature**2 * second / 3
    actual = nkd_loss(student, teacher, torch.tensor(target), gamma, temperature)
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def test_soft_labels_count_by_their_largest_entry() -> None:
    soft = torch.tensor([[0.6, 0.4, 0, 0], [0.1, 0.2, 0.4, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(nkd_loss(STUDENT, TEACHER, soft), nkd_loss(STUDENT, TEACHER, TARGET), rtol=0, atol=0)


def test_non_target_part_does_not_see_the_target_logit() -> None:
    """The published code once kept the target among the others; exactly K-1 logits may count."""
    changed_student, changed_teacher = STUDENT.clone(), TEACHER.clone()
    rows = torch.arange(2)
    changed_student[rows, TARGET] += 7
    changed_teacher[rows, TARGET] -= 3

    def others(student: Tensor, teacher: Tensor) -> Tensor:
        return nkd_loss(student, teacher, TARGET, 1.0) - nkd_loss(student, teacher, TARGET, 0.0)

    torch.testing.assert_close(others(changed_student, changed_teacher), others(STUDENT, TEACHER))


def test_two_classes_leave_nothing_in_the_non_target_part() -> None:
    student, teacher, target = logits(4, 2), logits(4, 2, seed=1), torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(nkd_loss(student, teacher, target, 1.5), nkd_loss(student, teacher, target, 0.0))


def test_gradcheck_and_no_gradient_to_the_teacher() -> None:
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    target = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda s: nkd_loss(s, teacher, target, 1.5, 2.0), (student,))
    nkd_loss(student, teacher, target).backward()
    assert teacher.grad is None


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss = nkd_loss(student, torch.tensor([[-1e4, 0.0, 1e4]]), torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(1.5e4)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = STUDENT.to(dtype), TEACHER.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nkd_loss(student, teacher, TARGET)
    torch.testing.assert_close(loss, nkd_loss(student.float(), teacher.float(), TARGET), rtol=0, atol=0)


def test_the_method_reads_labels(plain, make_outputs) -> None:
    loss = NKD(plain(), plain())
    assert loss.needs_labels
    assert (loss.gamma, loss.temperature, loss.default_weight) == (1.5, 1.0, 1.0)
    own, other = make_outputs(plain(), loss.student_request), make_outputs(plain(), loss.teacher_request, seed=1)
    target = torch.tensor([0, 4, 2])
    torch.testing.assert_close(loss(own, other, target), nkd_loss(own.logits, other.logits, target))
    with pytest.raises(UserError, match="unlabelled"):
        loss(own, other)
    with pytest.raises(UserError, match="at least two classes"):
        NKD(plain(num_classes=1), plain(num_classes=1))
