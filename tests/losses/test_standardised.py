"""Logit standardisation: what it makes of logits, and that any loss on logits can be put inside, and no other."""

import importlib
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.losses import (
    METHODS,
    Standardised,
    build_losses,
    dist_loss,
    dkd_loss,
    kd_loss,
    nkd_loss,
    parse_methods,
    standardised_logits,
)
from limbeck.models.cifar import create
from limbeck.outputs import Outputs

TARGET = torch.tensor([0, 4, 2])
STUDENT, TEACHER = (
    torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1)
)


def build(text: str, plain) -> Standardised:
    (built,) = build_losses(parse_methods(text), plain(), plain())
    return built.module


def slow(logits: Tensor) -> Tensor:
    rows = []
    for row in logits.tolist():
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / (len(row) - 1))
        rows.append([(x - mean) / (deviation + 1e-7) for x in row])
    return torch.tensor(rows, dtype=torch.float64)


def test_equals_a_slow_loop() -> None:
    torch.testing.assert_close(standardised_logits(7 * STUDENT + 3), slow(7 * STUDENT + 3))


def test_mean_is_0_and_the_unbiased_deviation_1() -> None:
    scores = standardised_logits(100 * STUDENT - 8)
    torch.testing.assert_close(scores.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(scores.std(1), torch.ones(3).double(), rtol=1e-6, atol=0)


def test_known_values() -> None:
    """The mean is 2 and the variance (4 + 0 + 4) / 2 = 4."""
    scores = standardised_logits(torch.tensor([[0.0, 2.0, 4.0]], dtype=torch.float64))
    torch.testing.assert_close(scores, torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64), rtol=1e-6, atol=0)


def test_equal_logits_become_zeros_with_a_finite_gradient() -> None:
    logits = torch.full((2, 5), 3.0, requires_grad=True)
    scores = standardised_logits(logits)
    assert scores.abs().max() == 0
    kd_loss(scores, TEACHER[:2].float(), 2.0).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = standardised_logits(STUDENT.to(dtype))
    torch.testing.assert_close(scores, standardised_logits(STUDENT.to(dtype).float()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("standardised", lambda s, t: kd_loss(s, t, 2.0)),
        ("standardised(temperature=3)", lambda s, t: kd_loss(s, t, 3.0)),
        ("standardised(of='kd(temperature=3)')", lambda s, t: kd_loss(s, t, 3.0)),
        ("standardised(of=function_matching)", lambda s, t: kd_loss(s, t, 2.0)),
        ("standardised(of=dkd)", lambda s, t: dkd_loss(s, t, TARGET, 1.0, 8.0, 2.0)),
        (
            "standardised(of='dkd(beta=2, alpha=0.5)', temperature=3)",
            lambda s, t: dkd_loss(s, t, TARGET, 0.5, 2.0, 3.0),
        ),
        ("standardised(of=nkd)", lambda s, t: nkd_loss(s, t, TARGET, 1.5, 2.0)),
        ("standardised(of='dist(gamma=0.5)')", lambda s, t: dist_loss(s, t, 1.0, 0.5, 2.0)),
    ],
)
def test_it_is_the_other_loss_of_standardised_logits(text: str, expected, plain) -> None:
    loss = build(text, plain)
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    value = loss(Outputs(student), Outputs(teacher), TARGET)
    torch.testing.assert_close(value, expected(slow(STUDENT), slow(TEACHER)), rtol=1e-9, atol=1e-12)
    value.backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


def test_each_images_scale_and_offset_do_not_count_in_either_model(plain) -> None:
    loss = build("standardised", plain)
    scale, offset = torch.tensor([[0.1], [3.0], [50.0]]).double(), torch.tensor([[4.0], [0.0], [-9.0]]).double()
    expected = loss(Outputs(STUDENT), Outputs(TEACHER))
    changed = loss(Outputs(scale * STUDENT + offset), Outputs(TEACHER / scale - offset))
    torch.testing.assert_close(changed, expected, rtol=1e-5, atol=0)
    assert not torch.isclose(kd_loss(scale * STUDENT, TEACHER), kd_loss(STUDENT, TEACHER))


def test_gradcheck(plain) -> None:
    loss = build("standardised(of=dkd)", plain)
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(Outputs(s), Outputs(TEACHER), TARGET), (student,))


def test_published_weights_and_the_warmup_of_what_is_inside(plain) -> None:
    texts = "standardised+standardised(of=dkd)+standardised(of=dkd, weight=3, warmup_epochs=1)"
    plain_kd, dkd, own = build_losses(parse_methods(texts), plain(), plain())
    assert [(b.name, b.weight, b.warmup_epochs) for b in (plain_kd, dkd, own)] == [
        ("standardised", 9.0, 0.0),
        ("standardised#2", 9.0, 20.0),
        ("standardised#3", 3.0, 1.0),
    ]
    assert plain_kd.module.default_task_weight == 0.1
    assert build("standardised(of=function_matching)", plain).default_task_weight == 0


def test_labels_are_needed_where_they_are_inside(plain) -> None:
    assert not Standardised.needs_labels
    assert not build("standardised", plain).needs_labels
    assert build("standardised(of=dkd)", plain).needs_labels
    teacher, student = create("resnet14", 5, input_size=(16, 16)), create("resnet8", 5, input_size=(16, 16))
    images = torch.rand(3, 3, 16, 16)
    assert set(Distiller(teacher, student, "standardised", task_loss=None)(images)) == {"standardised", "total"}
    with pytest.raises(UserError, match="standardised reads labels, and there are none"):
        Distiller(teacher, student, "standardised(of=nkd)", task_loss=None)
    with pytest.raises(UserError, match="dkd reads the label of every image"):
        build("standardised(of=dkd)", plain)(Outputs(STUDENT), Outputs(TEACHER))
    assert Distiller(teacher, student, "standardised(of=dkd)")(images, torch.softmax(STUDENT, 1))["total"].isfinite()


def test_what_became_of_the_temperature_is_said(plain) -> None:
    assert build("standardised", plain).notes == ()
    assert build("standardised(of='kd(temperature=4)')", plain).notes == ("kd sets its own temperature, 4.",)


OWN = """
from limbeck.losses import DistillationLoss

class Gap(DistillationLoss):
    on_logits = True

    def forward(self, student, teacher, target=None):
        return (student.logits - teacher.logits).square().mean()
"""


def test_a_class_of_ones_own_can_be_inside(plain, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_inner_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    loss = build("standardised(of='my_inner_losses:Gap')", plain)
    expected = (slow(STUDENT) - slow(TEACHER)).square().mean()
    torch.testing.assert_close(loss(Outputs(STUDENT), Outputs(TEACHER)), expected, rtol=1e-6, atol=0)
    assert loss.notes == ("Gap has no temperature, so that none is used.",)


def test_the_losses_that_say_they_read_only_logits_do(plain, make_outputs) -> None:
    """None of them asks either model for more, and each can be inside; the message names exactly these."""
    fitting = []
    for name, info in METHODS.items():
        module, _, class_name = info.path.partition(":")
        found = getattr(importlib.import_module(module), class_name)
        if found.on_logits and found is not Standardised:
            loss = build(f"standardised(of={name})", plain)
            assert loss.of.student_request == loss.of.teacher_request == loss.student_request
            assert loss(Outputs(STUDENT), Outputs(TEACHER), TARGET).isfinite()
            fitting.append(name)
    assert {"kd", "nkd", "dkd", "dist", "function_matching"} <= set(fitting)
    with pytest.raises(UserError, match=f"one of {', '.join(fitting)}, or a class of yours"):
        build("standardised(of=manifold)", plain)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("standardised(of=manifold)", "'manifold', but manifold is not a plain loss on logits"),
        ("standardised(of=standardised)", "'standardised', but standardised is not a plain loss on logits"),
        ("standardised(of='kd+dkd')", r"'kd\+dkd', which is 2 methods"),
        ("standardised(of='none')", "'none', which is 0 methods"),
        ("standardised(of='kd(weight=2)')", "weight belong to the whole"),
        ("standardised(of='dkd(weight=2, warmup_epochs=0)')", "weight and warmup_epochs belong to the whole"),
        ("standardised(of='kd(temprature=2)')", "kd has no option 'temprature'"),
        ("standardised(of='kd(temperature=hot)')", "kd: temperature is 'hot'"),
        ("standardised(of='dkt')", "no method 'dkt'. Did you mean 'dkd'"),
        ("standardised(of=3)", "of is 3; it must be a quoted text"),
        ("standardised(temperature=0)", "standardised: temperature is 0"),
    ],
)
def test_what_cannot_be_inside_is_named(text: str, message: str, plain) -> None:
    with pytest.raises(UserError, match=message):
        build(text, plain)


def test_models_that_cannot_be_compared_are_refused(plain, detector) -> None:
    with pytest.raises(UserError, match="standardised needs at least three classes"):
        Standardised(plain(num_classes=2), plain(num_classes=2))
    with pytest.raises(UserError, match="standardised compares class by class"):
        Standardised(plain(), plain(num_classes=6))
    with pytest.raises(UserError, match="standardised compares what classifiers say"):
        Standardised(detector(), detector())
