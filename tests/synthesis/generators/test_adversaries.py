"""Terms of generators' losses: closed forms, limits, and gradients through both networks."""

import math

import pytest
import torch

from limbeck.synthesis.generators.adversaries import (
    activation_loss,
    balance_loss,
    l1_disagreement,
    one_hot_loss,
)


@pytest.mark.parametrize("classes", [2, 7])
def test_uniform_answers_have_the_entropy_of_all_classes(classes: int) -> None:
    logits = torch.full((5, classes), 3.0)
    assert balance_loss(logits).item() == pytest.approx(-math.log(classes))
    assert one_hot_loss(logits).item() == pytest.approx(math.log(classes))


def test_sure_answers_are_balanced_if_each_class_is_named_as_often() -> None:
    sure = 50.0 * torch.eye(4)
    assert balance_loss(sure.repeat(3, 1)).item() == pytest.approx(-math.log(4))
    assert balance_loss(sure[:1].repeat(3, 1)).item() == pytest.approx(0, abs=1e-6)
    assert one_hot_loss(sure).item() == pytest.approx(0, abs=1e-6)


def test_balance_of_a_mixed_batch() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64)
    mean = torch.tensor([0.4, 0.5, 0.1], dtype=torch.float64)
    assert balance_loss(probabilities.log()).item() == pytest.approx((mean * mean.log()).sum().item())


def test_a_class_without_a_trace_gives_finite_gradients() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [1e4, 10.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(balance_loss(logits), logits)
    assert gradient.isfinite().all()


def test_activation_is_the_mean_magnitude() -> None:
    assert activation_loss(torch.tensor([[1.0, -2.0], [3.0, 0.0]])).item() == pytest.approx(-1.5)


def test_l1_disagreement_is_the_mean_distance_of_logits() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64)
    assert l1_disagreement(logits, logits - 0.25).item() == pytest.approx(0.25)
    assert l1_disagreement(logits, logits).item() == 0


def test_half_precision_answers_are_compared_in_single_precision() -> None:
    half = torch.randn(4, 5).half()
    for term in (one_hot_loss, activation_loss, balance_loss):
        assert term(half).dtype == torch.float32
    assert l1_disagreement(half, half).dtype == torch.float32
