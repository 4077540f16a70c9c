import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import DIST, build_losses, dist_loss, parse_methods


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum((x - mean_a) ** 2 for x in a)) * math.sqrt(sum((y - mean_b) ** 2 for y in b))
    return product / (lengths + 1e-8)


def slow(student: Tensor, teacher: Tensor, beta: float, gamma: float, temperature: float) -> float:
    s = [softmax(row, temperature) for row in student.tolist()]
    t = [softmax(row, temperature) for row in teacher.tolist()]
    inter = [1 - pearson(a, b) for a, b in zip(s, t, strict=True)]
    intra = [1 - pearson(list(a), list(b)) for a, b in zip(zip(*s, strict=True), zip(*t, strict=True), strict=True)]
    return temperature**2 * (beta * sum(inter) / len(inter) + gamma * sum(intra) / len(intra))


@pytest.mark.parametrize(
    ("beta", "gamma", "temperature"), [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0), (2.0, 0.0, 1.0), (0.0, 3.0, 2.0)]
)
def test_equals_a_slow_loop(beta: float, gamma: float, temperature: float) -> None:
    student, teacher = 2 * logits(4, 6), logits(4, 6, seed=1)
    expected = slow(student, teacher, beta, gamma, temperature)
    assert dist_loss(student, teacher, beta, gamma, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_equals_torchs_correlation_matrix() -> None:
    student, teacher = logits(4, 6), logits(4, 6, seed=1)
    s, t = student.softmax(1), teacher.softmax(1)
    inter = 1 - torch.corrcoef(torch.cat([s, t]))[:4, 4:].diagonal().mean()
    intra = 1 - torch.corrcoef(torch.cat([s.T, t.T]))[:6, 6:].diagonal().mean()
    torch.testing.assert_close(dist_loss(student, teacher), inter + intra, rtol=1e-5, atol=1e-6)


def test_equal_and_opposite_predictions() -> None:
    teacher = logits(4, 6)
    assert dist_loss(teacher + 3, teacher).item() == pytest.approx(0, abs=1e-6)
    # Probabilities mirrored at 1/K are perfectly anti-correlated over classes and over images.
    small = (0.1 * teacher).softmax(1)
    assert dist_loss((2 / 6 - small).log(), small.log()).item() == pytest.approx(4, abs=1e-4)


def test_only_proportions_of_probabilities_count() -> None:
    """Mixing every prediction with the uniform one halves all deviations from the mean, and no correlation changes."""
    student, teacher = logits(4, 6), logits(4, 6, seed=1)
    blurred = (0.5 * student.softmax(1) + 0.5 / 6).log()
    torch.testing.assert_close(dist_loss(blurred, teacher), dist_loss(student, teacher), rtol=0, atol=1e-6)


def test_one_image_has_no_correlation_over_images() -> None:
    student, teacher = logits(1, 6).requires_grad_(), logits(1, 6, seed=1)
    intra = dist_loss(student, teacher, 0.0, 3.0)
    intra.backward()
    assert intra.item() == 3
    assert student.grad.abs().max() == 0
    whole = dist_loss(student, teacher)
    whole.backward()
    assert whole.item() == pytest.approx(slow(student.detach(), teacher, 1, 0, 1) + 1)
    assert student.grad.isfinite().all() and student.grad.abs().max() > 0


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_predictions_without_variation_are_finite(value: float) -> None:
    """Uniform ones, and certain ones of which all images have the same."""
    student = torch.zeros(3, 5)
    student[:, 0] = value
    student.requires_grad_()
    for teacher in (logits(3, 5).float(), student.detach()):
        loss = dist_loss(student, teacher)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite() and gradient.isfinite().all()


def test_gradcheck_and_no_gradient_to_the_teacher() -> None:
    student, teacher = logits(3, 5).requires_grad_(), logits(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: dist_loss(s, teacher, 1.0, 2.0, 2.0), (student,))
    dist_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    # 1000 classes: most probabilities are below float16's smallest step around their mean.
    student, teacher = logits(4, 1000).to(dtype), logits(4, 1000, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dist_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, dist_loss(student.float(), teacher.float()), rtol=0, atol=0)


def test_the_method_and_its_published_numbers(plain, make_outputs) -> None:
    (built,) = build_losses(parse_methods("dist"), plain(), plain())
    loss = built.module
    assert (loss.beta, loss.gamma, loss.temperature) == (1.0, 1.0, 1.0)
    assert (built.weight, built.warmup_epochs, loss.default_task_weight) == (2.0, 0.0, 1.0)
    assert loss.on_logits and not loss.needs_labels
    own, other = make_outputs(plain(), loss.student_request), make_outputs(plain(), loss.teacher_request, seed=1)
    expected = dist_loss(own.logits, other.logits)
    torch.testing.assert_close(loss(own, other), expected)
    torch.testing.assert_close(loss(own, other, torch.rand(3, 5)), expected)


def test_refuses_what_cannot_be_compared(plain) -> None:
    with pytest.raises(UserError, match="dist needs at least two classes"):
        DIST(plain(num_classes=1), plain(num_classes=1))
    with pytest.raises(UserError, match="dist compares class by class"):
        DIST(plain(), plain(num_classes=10))
    for options, message in (
        ({"beta": -1.0}, "beta is -1.0"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"beta": 0.0, "gamma": 0.0}, "both 0"),
    ):
        with pytest.raises(UserError, match=f"dist: .*{message}"):
            DIST(plain(), plain(), **options)
