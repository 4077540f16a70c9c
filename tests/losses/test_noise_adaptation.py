"""noise_adaptation: its formula, its matrix, and its two limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import NoiseAdaptation, build_losses, noise_adaptation_loss, parse_methods


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(student: Tensor, teacher: Tensor, matrix: Tensor) -> float:
    batch, classes = student.shape
    total = 0.0
    for b in range(batch):
        powers = [math.exp(value) for value in student[b].tolist()]
        answer = max(range(classes), key=teacher[b].tolist().__getitem__)
        total -= math.log(sum(float(matrix[answer, j]) * powers[j] / sum(powers) for j in range(classes)))
    return total / batch


def test_it_is_the_negative_logarithm_of_the_adapted_probability() -> None:
    student, teacher, logits = random(3, 4), random(3, 4, seed=1), random(4, 4, seed=2)
    expected = slow(student, teacher, logits.softmax(0))
    assert float(noise_adaptation_loss(student, teacher, logits)) == pytest.approx(expected, rel=1e-12)


def test_a_known_matrix() -> None:
    """The student is sure of class 0, of which the teacher says class 1 three times in four."""
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    student, teacher = torch.tensor([[900.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert float(noise_adaptation_loss(student, teacher, logits)) == pytest.approx(-math.log(0.75), rel=1e-6)


def test_the_identity_gives_cross_entropy_and_the_uniform_matrix_a_constant() -> None:
    student, teacher = random(5, 4), random(5, 4, seed=1)
    expected = F.cross_entropy(student, teacher.argmax(1))
    torch.testing.assert_close(noise_adaptation_loss(student, teacher, 500 * torch.eye(4).double()), expected)
    uniform = noise_adaptation_loss(student, teacher, torch.zeros(4, 4).double())
    torch.testing.assert_close(uniform, torch.tensor(math.log(4.0), dtype=torch.float64))


def test_columns_are_distributions_that_start_near_the_identity(plain) -> None:
    for classes, diagonal in ((5, 0.9), (1000, 0.9), (5, 0.5)):
        facts = plain(num_classes=classes)
        loss = NoiseAdaptation(facts, facts, diagonal=diagonal)
        torch.testing.assert_close(loss.matrix.sum(0), torch.ones(classes))
        torch.testing.assert_close(loss.matrix.diagonal(), torch.full((classes,), diagonal))
        others = loss.matrix[~torch.eye(classes, dtype=torch.bool)]
        torch.testing.assert_close(others, torch.full_like(others, (1 - diagonal) / (classes - 1)))


def test_gradients_go_to_the_student_and_the_matrix_only() -> None:
    student, teacher, logits = (t.requires_grad_() for t in (random(3, 4), random(3, 4, seed=1), random(4, 4, seed=2)))
    noise_adaptation_loss(student, teacher, logits).backward()
    assert teacher.grad is None and student.grad is not None and logits.grad is not None
    answers = teacher.detach()
    assert torch.autograd.gradcheck(lambda s, m: noise_adaptation_loss(s, answers, m), (student, logits))


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = noise_adaptation_loss(student, torch.tensor([[0.0, 1.0, 0.0]]), 1e4 * torch.eye(3))
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()


def test_the_matrix_learns_a_swap_of_two_classes(plain) -> None:
    """A teacher that takes classes 0 and 1 for each other: the matrix says so, and the student keeps its own names."""
    facts = plain(num_classes=3)
    torch.manual_seed(0)
    loss = NoiseAdaptation(facts, facts)
    truth = torch.arange(3).repeat(20)
    student, teacher = 8 * F.one_hot(truth, 3).float(), F.one_hot(torch.tensor([1, 0, 2])[truth], 3).float()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        noise_adaptation_loss(student, teacher, loss.matrix_logits).backward()
        optimizer.step()
    assert loss.matrix.argmax(0).tolist() == [1, 0, 2]
    assert loss.matrix.max(0).values.min() > 0.95


def test_options_and_classes_are_checked(plain) -> None:
    (built,) = build_losses(parse_methods("noise_adaptation"), plain(), plain())
    assert (built.weight, built.module.default_task_weight) == (1.0, 1.0)
    for diagonal in (0.2, 1.0, float("nan")):
        with pytest.raises(UserError, match=r"diagonal is .* between 1/5"):
            NoiseAdaptation(plain(), plain(), diagonal=diagonal)
    with pytest.raises(UserError, match="noise_adaptation compares class by class"):
        NoiseAdaptation(plain(), plain(num_classes=6))
    assert NoiseAdaptation(plain(num_classes=1), plain(num_classes=1)).matrix.tolist() == [[1.0]]
