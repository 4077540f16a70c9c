"""DAFL, ZSKT, DFAD and the attention generator: what they learn, what they leave alone, and what a resumed run repeats."""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.attention import AttentionGenerator
from limbeck.synthesis.generators.dafl import DAFL
from limbeck.synthesis.generators.dfad import DFAD
from limbeck.synthesis.generators.streamed import GeneratorMethod
from limbeck.synthesis.generators.zskt import ZSKT

from .conftest import SmallNetwork

Make = Callable[..., GeneratorMethod]

SMALL: dict[str, Any] = {"latent": 6, "channels": 4, "generator_steps": 3}
METHODS = [DAFL, ZSKT, DFAD, AttentionGenerator]


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    return partial(request.param, **SMALL)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_every_parameter_of_the_generator_gets_a_gradient(make: Make, setting: Setting, student: VisionModel) -> None:
    method = make(setting)
    torch.manual_seed(0)
    terms = method.terms(method.network(torch.randn(8, 6)), student.eval())
    loss = sum(weight * terms[name] for name, weight in method.weights.items())
    for (name, parameter), gradient in zip(
        method.network.named_parameters(),
        torch.autograd.grad(loss, list(method.network.parameters())),
        strict=True,
    ):
        assert gradient.isfinite().all() and gradient.abs().max() > 0, (name, parameter.shape)


def test_networks_are_left_as_they_were(
    make: Make, setting: Setting, student: VisionModel, snapshot: Callable[[nn.Module], list[object]]
) -> None:
    method = make(setting)
    before = snapshot(setting.teacher), snapshot(student)
    parameters = copy.deepcopy(method.network.state_dict())
    method.learn(student)
    method.draw(4)
    assert (snapshot(setting.teacher), snapshot(student)) == before
    assert not same(method.network.state_dict(), parameters)
    assert all(parameter.grad is None for parameter in method.network.parameters())


class KeepsItsWeights(nn.Linear):
    """In evaluation mode it goes on with the weights of its first pass until `train` is called, as attention biases do."""

    kept: torch.Tensor | None = None

    def train(self, mode: bool = True) -> Self:
        self.kept = None
        return super().train(mode)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            return super().forward(inputs)
        self.kept = self.weight.detach().clone() if self.kept is None else self.kept
        return nn.functional.linear(inputs, self.kept, self.bias)


def test_a_student_is_asked_with_the_weights_that_it_has_now(setting: Setting, student: SmallNetwork) -> None:
    student.classifier = KeepsItsWeights(8, 4)
    ours, fresh = (DFAD(setting, **SMALL) for _ in range(2))
    ours.learn(student)
    fresh.load_state_dict(copy.deepcopy(ours.state_dict()))
    with torch.no_grad():
        student.classifier.weight.neg_()
    newborn = copy.deepcopy(student).train()
    for method, one in ((ours, student), (fresh, newborn)):
        torch.manual_seed(7)
        method.learn(one)
    assert same(ours.state_dict(), fresh.state_dict())


def test_drawing_changes_nothing_and_needs_no_gradient(make: Make, setting: Setting, student: VisionModel) -> None:
    method = make(setting)
    method.learn(student)
    before = copy.deepcopy(method.state_dict())
    torch.manual_seed(5)
    images = method.draw(11)
    assert images.shape == (11, 3, 16, 16) and images.dtype == torch.float32 and not images.requires_grad
    assert 0 <= images.min() < images.max() <= 1
    torch.manual_seed(5)
    assert torch.equal(method.draw(11), images)
    assert same(method.state_dict(), before)


def test_a_resumed_run_goes_on_bit_for_bit(make: Make, setting: Setting, student: VisionModel) -> None:
    def learn(method: GeneratorMethod, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            method.learn(student)

    whole, first = make(setting), make(setting)
    learn(whole, range(5))
    learn(first, range(3))
    saved = copy.deepcopy(first.state_dict())
    # Another seed, so that nothing but the state can make it equal.
    second = make(Setting(setting.teacher, setting.size, setting.batch_size, seed=99))
    assert not same(second.state_dict()["network"], saved["network"])
    second.load_state_dict(saved)
    learn(second, range(3, 5))
    assert same(second.state_dict(), whole.state_dict())
    torch.manual_seed(7)
    drawn = whole.draw(4)
    torch.manual_seed(7)
    assert torch.equal(second.draw(4), drawn)


def test_state_is_read_back_as_plain_tensors(make: Make, setting: Setting, student: VisionModel, tmp_path: Any) -> None:
    method = make(setting)
    method.learn(student)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    assert same(torch.load(tmp_path / "state.pt", weights_only=True), method.state_dict())


def test_half_precision_around_it_changes_nothing(make: Make, setting: Setting, student: VisionModel) -> None:
    plain, within = make(setting), make(setting)
    torch.manual_seed(0)
    plain.learn(student)
    drawn = plain.draw(3)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        within.learn(student)
        assert torch.equal(within.draw(3), drawn)
    assert same(within.state_dict(), plain.state_dict())


def test_two_updates_are_two_calls_of_one(make: Make, setting: Setting, student: VisionModel) -> None:
    once, twice = make(setting), make(setting, updates=2)
    torch.manual_seed(0)
    once.learn(student)
    once.learn(student)
    torch.manual_seed(0)
    twice.learn(student)
    assert same(once.state_dict(), twice.state_dict())


def test_the_loss_falls(make: Make, setting: Setting, student: VisionModel) -> None:
    method = make(setting, lr=3e-3)
    losses = []
    for step in range(40):
        torch.manual_seed(step)
        method.learn(student)
        losses.append(method.log()["loss"])
    assert max(losses[-5:]) < min(losses[:5])
    weighted = sum(weight * method.log()[name] for name, weight in method.weights.items())
    assert weighted == pytest.approx(losses[-1], rel=1e-5)


def test_made_pictures_depend_on_the_seed_alone(make: Make, setting: Setting, student: VisionModel) -> None:
    if make(setting).needs_student:
        setting = dataclasses.replace(setting, student=student)
    method = make(setting)
    state = torch.get_rng_state()
    batches = list(method.make(20))
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(made) for made in batches] == [8, 8, 4]
    assert not any(made.images.requires_grad for made in batches)
    images = torch.cat([made.images for made in batches])
    assert len({image.numpy().tobytes() for image in images}) == 20
    method.learn(student)
    torch.manual_seed(99)
    assert torch.equal(torch.cat([made.images for made in method.make(20)]), images)
    resumed = torch.cat([made.images for made in make(setting).make(20, done=8)])
    assert torch.equal(resumed, images[8:])
    # Fewer in all are the first of them.
    assert torch.equal(torch.cat([made.images for made in make(setting).make(11)]), images[:11])


@pytest.mark.parametrize("method", [ZSKT, DFAD, partial(AttentionGenerator, adversary="disagreement")])
def test_those_that_seek_disagreement_refuse_to_work_without_a_student(method: Make, setting: Setting) -> None:
    made = method(setting, **SMALL)
    assert made.needs_student
    with pytest.raises(UserError, match="limbeck distill --data none"):
        made.make(4)
    with pytest.raises(UserError, match="no student was given"):
        made.learn(None)


def test_flags_before_anything_is_built() -> None:
    assert [method.needs_learning_student for method in METHODS] == [False, True, True, False]


def test_published_defaults(setting: Setting) -> None:
    dafl, zskt, dfad = DAFL(setting), ZSKT(setting), DFAD(setting)
    assert dafl.weights == {"one_hot": 1.0, "activation": 1e-3, "balance": 20.0}
    assert [(m.latent, m.student_steps, m.updates) for m in (dafl, zskt, dfad)] == [
        (512, 5, 1),
        (256, 10, 1),
        (256, 5, 1),
    ]
    assert dafl.optimizer.defaults["lr"] == 1e-3 and dafl.optimizer.defaults["betas"] == (0.5, 0.999)


def test_zskt_and_dfad_make_the_student_disagree_more(setting: Setting, student: VisionModel) -> None:
    for kind in (ZSKT, DFAD):
        method = kind(setting, **SMALL, lr=3e-3)
        seen = []
        for step in range(40):
            torch.manual_seed(step)
            method.learn(student)
            seen.append(method.log()["disagreement"])
        assert sum(seen[-5:]) > 1.2 * sum(seen[:5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"student_steps": 0}, "student_steps is 0"),
        ({"updates": 0}, "updates is 0"),
        ({"generator_steps": -1}, "generator_steps is -1"),
        ({"betas": (0.5, 1.0)}, "betas are"),
    ],
)
def test_impossible_options_are_named(make: Make, setting: Setting, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(setting, **options)


def test_a_loss_without_any_term_is_refused(setting: Setting) -> None:
    with pytest.raises(UserError, match="all weights are 0"):
        DAFL(setting, one_hot=0.0, activation=0.0, balance=0.0)


def test_a_teacher_with_one_class_leaves_what_does_not_read_probabilities(setting: Setting) -> None:
    one = dataclasses.replace(setting, teacher=type(setting.teacher)(seed=1, num_classes=1))
    dafl = DAFL(one, **SMALL)
    assert set(dafl.weights) == {"activation"} and "no one_hot, balance" in dafl.notes[0]
    dafl.learn(None)
    assert set(AttentionGenerator(one, **SMALL).weights) == {"diversity"}
    assert set(DFAD(one, **SMALL).weights) == {"disagreement"}
    with pytest.raises(UserError, match="has one class only"):
        ZSKT(one, **SMALL)
