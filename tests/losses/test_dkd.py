import math

import pytest
import torch
from torch import Tensor

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.losses import DKD, build_losses, dkd_loss, kd_loss, parse_methods
from limbeck.models.cifar import create

TARGET = torch.tensor([5, 0, 3])


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def divergence(teacher: list[float], student: list[float]) -> float:
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))


def slow(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float) -> float:
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        s, t = [x / temperature for x in s], [x / temperature for x in t]
        p_s, p_t = softmax(s)[y], softmax(t)[y]
        rest_s, rest_t = softmax(s[:y] + s[y + 1 :]), softmax(t[:y] + t[y + 1 :])
        total += alpha * divergence([p_t, 1 - p_t], [p_s, 1 - p_s]) + beta * divergence(rest_t, rest_s)
    return temperature**2 * total / len(target)


@pytest.mark.parametrize(
    ("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (1.0, 0.5, 1.0), (0.0, 1.0, 2.0), (2.0, 0.0, 3.0)]
)
def test_equals_a_slow_loop(alpha: float, beta: float, temperature: float) -> None:
    student, teacher = 2 * logits(3, 6), logits(3, 6, seed=1)
    expected = slow(student, teacher, TARGET, alpha, beta, temperature)
    assert dkd_loss(student, teacher, TARGET, alpha, beta, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_equals_the_released_form_with_large_negative_numbers_in_the_targets_place() -> None:
    student, teacher = logits(3, 6), logits(3, 6, seed=1)
    mask = 1000 * torch.nn.functional.one_hot(TARGET, 6)
    p_s, p_t = (torch.softmax(z / 4, 1).gather(1, TARGET[:, None]) for z in (student, teacher))
    pairs_s, pairs_t = torch.cat([p_s, 1 - p_s], 1), torch.cat([p_t, 1 - p_t], 1)
    tckd = (pairs_t * (pairs_t / pairs_s).log()).sum() * 16 / 3
    rest_s, rest_t = torch.log_softmax(student / 4 - mask, 1), torch.softmax(teacher / 4 - mask, 1)
    nckd = torch.nn.functional.kl_div(rest_s, rest_t, reduction="sum") * 16 / 3
    torch.testing.assert_close(dkd_loss(student, teacher, TARGET), tckd + 8 * nckd)


def test_kd_is_dkd_with_the_teachers_doubt_as_beta() -> None:
    """KL(p_t ‖ p_s) = KL(b_t ‖ b_s) + (1 - p_y of the teacher) · KL(p̂_t ‖ p̂_s), image by image."""
    student, teacher = logits(3, 6), logits(3, 6, seed=1)
    for row in range(3):
        s, t, y = student[row : row + 1], teacher[row : row + 1], TARGET[row : row + 1]
        doubt = 1 - torch.softmax(t / 4, 1)[0, y].item()
        torch.testing.assert_close(dkd_loss(s, t, y, 1.0, doubt, 4.0), kd_loss(s, t, 4.0))


def test_each_part_sees_only_its_own() -> None:
    student, teacher = logits(3, 6), logits(3, 6, seed=1)
    moved, rows = student.clone(), torch.arange(3)
    moved[rows, TARGET] += 5
    others = dkd_loss(student, teacher, TARGET, 0.0, 1.0)
    torch.testing.assert_close(dkd_loss(moved, teacher, TARGET, 0.0, 1.0), others)
    # Among the other classes anything may change as long as their logsumexp stays: here two of them are exchanged.
    swapped = student.clone()
    swapped[:, [1, 2]] = student[:, [2, 1]]
    torch.testing.assert_close(
        dkd_loss(swapped, teacher, TARGET, 1.0, 0.0), dkd_loss(student, teacher, TARGET, 1.0, 0.0)
    )
    assert not torch.isclose(dkd_loss(swapped, teacher, TARGET, 0.0, 1.0), others)


def test_equal_models_cost_nothing_and_an_offset_of_all_logits_does_not_count() -> None:
    student, teacher = logits(3, 6), logits(3, 6, seed=1)
    assert dkd_loss(student, student + 3, TARGET).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(dkd_loss(student + 7, teacher - 2, TARGET), dkd_loss(student, teacher, TARGET))


def test_soft_labels_count_by_their_largest_entry() -> None:
    student, teacher = logits(2, 4), logits(2, 4, seed=1)
    soft = torch.tensor([[0.6, 0.4, 0, 0], [0.1, 0.2, 0.4, 0.3]], dtype=torch.float64)
    hard = dkd_loss(student, teacher, torch.tensor([0, 2]))
    torch.testing.assert_close(dkd_loss(student, teacher, soft), hard, rtol=0, atol=0)


def test_gradcheck_and_no_gradient_to_the_teacher() -> None:
    student, teacher = logits(3, 6).requires_grad_(), logits(3, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: dkd_loss(s, teacher, TARGET), (student,))
    dkd_loss(student, teacher, TARGET).backward()
    assert teacher.grad is None


def test_sure_networks_stay_finite() -> None:
    """Where the target's probability is exactly 0 or 1 in float32, the released code takes the logarithm of 0."""
    for target in (0, 2):
        student = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
        loss = dkd_loss(student, torch.tensor([[-1e4, 0.0, 1e4]]), torch.tensor([target]), 1.0, 1.0, 1.0)
        loss.backward()
        # Target against the rest: 2e4 - 0 nats by 1e4 or 2e4; among the rest: two logits 1e4 apart the wrong way round.
        assert loss.item() == pytest.approx(1e4 + 1e4 if target == 0 else 2e4 + 1e4)
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = logits(3, 6).to(dtype), logits(3, 6, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dkd_loss(student, teacher, TARGET)
    torch.testing.assert_close(loss, dkd_loss(student.float(), teacher.float(), TARGET), rtol=0, atol=0)


def test_the_method_and_its_published_numbers(plain, make_outputs) -> None:
    (built,) = build_losses(parse_methods("dkd"), plain(), plain())
    loss = built.module
    assert (loss.alpha, loss.beta, loss.temperature) == (1.0, 8.0, 4.0)
    assert (built.weight, built.warmup_epochs, loss.default_task_weight) == (1.0, 20.0, 1.0)
    assert loss.needs_labels and loss.on_logits
    own, other = make_outputs(plain(), loss.student_request), make_outputs(plain(), loss.teacher_request, seed=1)
    target = torch.tensor([0, 4, 2])
    torch.testing.assert_close(loss(own, other, target), dkd_loss(own.logits, other.logits, target))
    with pytest.raises(UserError, match=r"dkd reads the label.*unlabelled"):
        loss(own, other)


def test_refuses_what_cannot_be_compared(plain) -> None:
    with pytest.raises(UserError, match=r"dkd needs at least three classes.*vit has 2"):
        DKD(plain(num_classes=2), plain(num_classes=2))
    with pytest.raises(UserError, match=r"dkd needs at least three classes.*the logits have 2"):
        dkd_loss(logits(3, 2), logits(3, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(UserError, match="10 classes and the student vit has 5"):
        DKD(plain(), plain(num_classes=10))
    for options, message in (
        ({"alpha": -1.0}, "alpha is -1.0; it must be at least 0"),
        ({"beta": -1.0}, "beta is -1.0; it must be at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"alpha": 0.0, "beta": 0.0}, "both 0"),
    ):
        with pytest.raises(UserError, match=f"dkd: .*{message}"):
            DKD(plain(), plain(), **options)


def test_mixed_labels_train_a_student() -> None:
    teacher, student = create("resnet14", 5, input_size=(16, 16)), create("resnet8", 5, input_size=(16, 16))
    distiller = Distiller(teacher, student, "dkd(warmup_epochs=0)").train()
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    terms = distiller(images, torch.softmax(torch.randn(4, 5), 1))
    terms["dkd"].backward()
    assert terms["total"].item() == pytest.approx((terms["task"] + terms["dkd"]).item())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
