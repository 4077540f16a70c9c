import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import KD, kd_loss


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_classes_closed_form() -> None:
    # Sigmoids of logit differences 2 and 0 at temperature 2.
    student, teacher, temperature = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), 2.0
    p = 1 / (1 + math.exp(-1))
    expected = temperature**2 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5))
    assert kd_loss(student.double(), teacher.double(), temperature).item() == pytest.approx(expected, rel=1e-12)


def test_equals_a_slow_loop() -> None:
    student, teacher, temperature = logits(3, 5), logits(3, 5, seed=1), 4.0
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        zs = sum(math.exp(x / temperature) for x in s)
        zt = sum(math.exp(x / temperature) for x in t)
        for a, b in zip(s, t, strict=True):
            p, q = math.exp(b / temperature) / zt, math.exp(a / temperature) / zs
            total += p * math.log(p / q)
    assert kd_loss(student, teacher).item() == pytest.approx(total * temperature**2 / 3, rel=1e-12)


def test_zero_and_shift_invariant() -> None:
    student, teacher = logits(4, 7), logits(4, 7, seed=1)
    assert kd_loss(student + 3, student).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(kd_loss(student + 5, teacher - 2), kd_loss(student, teacher))


def test_gradient_is_the_difference_of_probabilities() -> None:
    student, teacher = logits(4, 7).requires_grad_(), logits(4, 7, seed=1)
    kd_loss(student, teacher, 3.0).backward()
    expected = 3.0 / 4 * (torch.softmax(student.detach() / 3, 1) - torch.softmax(teacher / 3, 1))
    torch.testing.assert_close(student.grad, expected)


def test_gradcheck_and_no_gradient_to_the_teacher() -> None:
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: kd_loss(s, teacher, 2.0), (student,))
    kd_loss(student, teacher).backward()
    assert teacher.grad is None


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss = kd_loss(student, torch.tensor([[-1e4, 0.0, 1e4]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = logits(4, 9).to(dtype), logits(4, 9, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kd_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, kd_loss(student.float(), teacher.float()), rtol=0, atol=0)


def test_published_weights(plain, make_outputs) -> None:
    loss = KD(plain(), plain())
    assert (loss.default_weight, loss.default_task_weight, loss.temperature) == (0.9, 0.1, 4.0)
    own = make_outputs(plain(), loss.student_request)
    other = make_outputs(plain(), loss.teacher_request, seed=1)
    torch.testing.assert_close(loss(own, other), kd_loss(own.logits, other.logits, 4.0))


def test_refuses_what_cannot_be_compared(plain) -> None:
    with pytest.raises(UserError, match="10 classes and the student vit has 5"):
        KD(plain(), plain(num_classes=10))
    with pytest.raises(UserError, match="temperature is 0"):
        KD(plain(), plain(), temperature=0.0)


def test_shapes_are_checked_in_the_tests() -> None:
    import os

    if os.environ.get("LIMBECK_SHAPE_CHECKS") == "0":
        pytest.skip("shape checks are switched off")
    import jaxtyping

    with pytest.raises(jaxtyping.TypeCheckError):
        kd_loss(logits(3, 4), logits(3, 1))
