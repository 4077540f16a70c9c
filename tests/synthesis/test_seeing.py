"""One pass, everything read of it, and no network changed by it."""

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models import VisionModel, load_model
from limbeck.outputs import Request
from limbeck.synthesis.priors.base import Needs
from limbeck.synthesis.priors.batch_statistics import BatchStatistics
from limbeck.synthesis.seeing import Eyes


def model(name: str, seed: int = 0) -> VisionModel:
    torch.manual_seed(seed)
    return load_model(name, pretrained=False, num_classes=3, input_size=(32, 32))


def pictures(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def teacher() -> VisionModel:
    return model("limbeck:resnet8").requires_grad_(False).eval()


def state(network: nn.Module) -> dict[str, Tensor]:
    found = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found |= {f"{name}.grad": parameter.grad.clone() for name, parameter in network.named_parameters()}
    modes = {f"{name}.training": torch.tensor(part.training) for name, part in network.named_modules()}
    learning = {
        f"{name}.learns": torch.tensor(parameter.requires_grad) for name, parameter in network.named_parameters()
    }
    return found | modes | learning


def test_the_teacher_is_read_as_it_answers_by_itself(teacher: VisionModel) -> None:
    shown = teacher.prepare(pictures())
    request = Request(("stages.1",), pooled=True)
    with Eyes(teacher, Needs(request)) as eyes:
        seen = eyes.look(shown, shown)
    expected = teacher(pictures(), request)
    torch.testing.assert_close(seen.outputs.logits, expected.logits)
    torch.testing.assert_close(seen.outputs.maps["stages.1"], expected.maps["stages.1"])
    assert seen.student_logits is None
    assert not seen.attentions
    assert not seen.statistics


@pytest.mark.parametrize("name", ["limbeck:resnet8", "test_vit"])
def test_the_student_answers_in_evaluation_mode_and_nothing_of_it_changes(teacher: VisionModel, name: str) -> None:
    student = model(name, seed=1).train()
    student(pictures()).logits.sum().backward()
    frozen = next(student.parameters())
    frozen.requires_grad_(False)
    next(part for part in student.modules() if part is not student).eval()
    before = state_with_grads(student)
    shown = teacher.prepare(pictures()).requires_grad_()
    with Eyes(teacher, Needs(student=True), student) as eyes:
        seen = eyes.look(shown, shown)
        assert_same(state_with_grads(student), before)
        seen.student_logits.square().sum().backward()
    assert_same(state_with_grads(student), before)
    assert shown.grad.abs().max() > 0
    student.eval()
    torch.testing.assert_close(seen.student_logits, student(pictures()).logits, rtol=1e-4, atol=1e-4)
    student.train()
    student.zero_grad()
    student(pictures()).logits.sum().backward()
    assert all(one.grad is not None for one in student.parameters() if one is not frozen), "it goes on learning"


def state_with_grads(network: nn.Module) -> dict[str, Tensor]:
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return state(network)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_an_exception_gives_the_student_its_state_back(teacher: VisionModel) -> None:
    student = model("limbeck:resnet8", seed=1).train()
    before = state_with_grads(student)
    shown = teacher.prepare(pictures())

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    handle = student.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"), Eyes(teacher, Needs(student=True), student) as eyes:
        eyes.look(shown, shown)
    handle.remove()
    assert_same(state_with_grads(student), before)


def test_statistics_are_those_of_this_look_and_hooks_do_not_stay(teacher: VisionModel) -> None:
    shown, other = teacher.prepare(pictures()), 2 * teacher.prepare(pictures())
    prior = BatchStatistics(teacher)
    with Eyes(teacher, prior.needs) as eyes:
        first, second = eyes.look(shown, shown), eyes.look(other, other)
    layers = [part for part in teacher.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(first.statistics) == len(second.statistics) == len(layers)
    stem = next(part for part in teacher.modules() if isinstance(part, nn.Conv2d))
    torch.testing.assert_close(first.statistics[0].mean, stem(shown).mean((0, 2, 3)))
    torch.testing.assert_close(second.statistics[0].mean, stem(other).mean((0, 2, 3)))
    assert not any(part._forward_pre_hooks for part in teacher.modules())
    assert "read" not in vars(teacher)


def test_the_same_network_may_be_teacher_and_student(teacher: VisionModel) -> None:
    shown = teacher.prepare(pictures())
    with Eyes(teacher, Needs(batchnorm=True, student=True), teacher) as eyes:
        seen = eyes.look(shown, shown)
    torch.testing.assert_close(seen.student_logits, seen.outputs.logits)
    assert len(seen.statistics) == sum(isinstance(part, nn.BatchNorm2d) for part in teacher.modules())


def test_attention_of_both_is_read(teacher: VisionModel) -> None:
    transformer, student = model("test_vit").requires_grad_(False).eval(), model("test_vit", seed=1)
    shown = transformer.prepare(pictures())
    needs = Needs(attention=True, student=True, student_attention=True)
    with Eyes(transformer, needs, student) as eyes:
        for _ in range(2):
            seen = eyes.look(shown, shown)
            assert len(seen.attentions) == len(seen.student_attentions) == len(transformer.facts.levels)
    assert not torch.equal(seen.attentions[0].query, seen.student_attentions[0].query)


def test_precision_is_that_of_the_weights_inside_autocast(teacher: VisionModel) -> None:
    shown = teacher.prepare(pictures())
    student = model("limbeck:resnet8", seed=1)
    with Eyes(teacher, Needs(batchnorm=True, student=True), student) as eyes:
        with torch.autocast("cpu", torch.bfloat16):
            inside = eyes.look(shown, shown)
        outside = eyes.look(shown, shown)
    assert torch.equal(inside.outputs.logits, outside.outputs.logits)
    assert torch.equal(inside.student_logits, outside.student_logits)
    assert torch.equal(inside.statistics[-1].mean, outside.statistics[-1].mean)


def test_the_students_answers_pass_gradient_to_the_pictures(teacher: VisionModel) -> None:
    # Against a student that is asked directly.
    student = model("limbeck:resnet8", seed=1).eval()
    shown = teacher.prepare(pictures()).requires_grad_()
    with Eyes(teacher, Needs(student=True), student) as eyes:
        seen = eyes.look(shown, shown)
    (ours,) = torch.autograd.grad(seen.student_logits.square().sum(), shown)
    (theirs,) = torch.autograd.grad(student(shown * teacher.std + teacher.mean).logits.square().sum(), shown)
    torch.testing.assert_close(ours, theirs)


def test_terms_on_a_student_want_one(teacher: VisionModel) -> None:
    with pytest.raises(UserError, match="Give a student"):
        Eyes(teacher, Needs(student=True))
    with Eyes(teacher, Needs(), model("limbeck:resnet8")) as eyes:
        shown = teacher.prepare(pictures())
        assert eyes.look(shown, shown).student_logits is None, "nobody asked"
