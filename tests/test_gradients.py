"""Gradients of a loss's terms: lengths, ratios and angles, against explicit loops in float64."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from limbeck.distiller import Distiller
from limbeck.gradients import Gradients, measure_gradients
from limbeck.models.cifar import create


def terms_of(parameters: list[nn.Parameter]) -> dict[str, Tensor]:
    a, b = parameters
    return {
        "kd": (3 * a).sum() + b.square().sum(),
        "task": a.sum(),
        "opposite": -2 * a.sum(),
        "across": (b[0] - b[1]) * 5,
        "constant": torch.tensor(1.0),
    }


@pytest.fixture
def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(4, 3, dtype=torch.float64)), nn.Parameter(torch.ones(2, dtype=torch.float64))]


def test_lengths_and_angles_are_those_of_an_explicit_loop(parameters: list[nn.Parameter]) -> None:
    terms = terms_of(parameters)
    weights = {"kd": 0.5, "task": 2.0, "opposite": 1.0, "across": 0.0}
    found = measure_gradients(terms, weights, parameters)
    flat: dict[str, list[float]] = {}
    for name in weights:
        gradients = torch.autograd.grad(terms[name], parameters, retain_graph=True, allow_unused=True)
        flat[name] = [
            float(x)
            for gradient, parameter in zip(gradients, parameters, strict=True)
            for x in (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
        ]
    for name, values in flat.items():
        assert found.lengths[name] == pytest.approx(math.sqrt(sum(x * x for x in values)))
        assert found.norms[name] == pytest.approx(weights[name] * found.lengths[name])
    for a, b in combinations(["task", *(name for name in weights if name != "task")], 2):
        product = sum(x * y for x, y in zip(flat[a], flat[b], strict=True))
        assert found.cosines[a, b] == pytest.approx(product / (found.lengths[a] * found.lengths[b]), abs=1e-12)
    assert found.cosines["task", "opposite"] == pytest.approx(-1)
    assert found.cosines["task", "across"] == 0
    assert found.ratios["opposite"] == pytest.approx(1.0), "2 with weight 1 against 1 with weight 2"


def test_what_does_not_reach_the_student_has_length_zero_and_no_angle(parameters: list[nn.Parameter]) -> None:
    found = measure_gradients(terms_of(parameters), {"task": 1.0, "constant": 1.0}, parameters)
    assert found.lengths["constant"] == 0
    assert found.cosines == {}
    assert found.ratios == {"constant": 0.0}
    nothing = measure_gradients(terms_of(parameters), {"task": 1.0, "kd": 1.0}, [])
    assert nothing.norms == {"task": 0, "kd": 0}
    assert nothing.ratios == {}, "a ratio to nothing is none"


def test_weights_change_the_pull_and_not_the_angle(parameters: list[nn.Parameter]) -> None:
    found = measure_gradients(terms_of(parameters), {"task": 1.0, "kd": 1.0}, parameters)
    other = found.weighted({"task": 1.0, "kd": 10.0, "elsewhere": 5.0})
    assert other.ratios["kd"] == pytest.approx(10 * found.ratios["kd"])
    assert other.cosines == found.cosines


def test_the_record_names_terms_plainly_and_marks_what_is_derived() -> None:
    record = Gradients({"task": 2.0, "kd": 3.0}, {"task": 1.0, "kd": 0.5}, {("task", "kd"): 0.25}).record()
    assert record == {
        "task": 2.0, "kd": 1.5, "weight/task": 1.0, "weight/kd": 0.5, "ratio/kd": 0.75, "cosine/task|kd": 0.25
    }  # fmt: skip


def test_the_distillers_terms_are_compared_on_the_students_parameters_alone() -> None:
    torch.manual_seed(0)
    teacher, student = create("resnet14", 5, input_size=(16, 16)), create("resnet8", 5, input_size=(16, 16))
    distiller = Distiller(teacher, student, "kd+kd(temperature=1.0)+reviewkd(warmup_epochs=4)").train()
    images, target = torch.rand(6, 3, 16, 16), torch.arange(6) % 5
    found = distiller.measure_gradients(images, target)
    assert found.norms["reviewkd"] == 0, "its weight is still 0"
    assert found.lengths["reviewkd"] > 0
    assert set(found.cosines) == set(combinations(["task", "kd", "kd#2", "reviewkd"], 2))
    student.requires_grad_(False)
    assert set(distiller.measure_gradients(images, target).lengths.values()) == {0.0}
