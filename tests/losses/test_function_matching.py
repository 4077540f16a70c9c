import pytest
import torch

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.losses import FunctionMatching, build_losses, parse_methods
from limbeck.models.cifar import create


def test_it_is_the_cross_entropy_with_the_teacher_less_the_teachers_entropy(plain, make_outputs) -> None:
    (built,) = build_losses(parse_methods("function_matching"), plain(), plain())
    loss = built.module
    own, other = make_outputs(plain(), loss.student_request), make_outputs(plain(), loss.teacher_request, seed=1)
    said = other.logits.detach().softmax(1)
    entropy = -(said * said.log()).sum(1).mean()
    value = loss(own, other)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(own.logits, said) - entropy)
    value.backward()
    assert own.logits.grad.abs().max() > 0
    assert other.logits.grad is None
    assert (built.weight, built.warmup_epochs, loss.temperature) == (1.0, 0.0, 1.0)
    assert loss.on_logits and not loss.needs_labels
    assert "--mixup 1.0" in loss.notes[0]


def test_labels_weigh_nothing_unless_asked_to_or_joined_with_a_loss_that_wants_them() -> None:
    teacher, student = create("resnet14", 5, input_size=(16, 16)), create("resnet8", 5, input_size=(16, 16))
    images, target = torch.rand(3, 3, 16, 16), torch.tensor([0, 4, 2])
    terms = Distiller(teacher, student, "function_matching")(images, target)
    torch.testing.assert_close(terms["total"], terms["function_matching"])
    assert Distiller(teacher, student, "function_matching", task_weight=0.5).task_weight == 0.5
    assert Distiller(teacher, student, "function_matching+at").task_weight == 1
    # Of mixed labels, too, nothing is read.
    mixed = Distiller(teacher, student, "function_matching").eval()
    own = mixed(images, target)["total"]
    torch.testing.assert_close(mixed(images, torch.softmax(torch.randn(3, 5), 1))["total"], own)


def test_refuses_what_cannot_be_compared(plain) -> None:
    with pytest.raises(UserError, match="function_matching compares class by class"):
        FunctionMatching(plain(), plain(num_classes=10))
    with pytest.raises(UserError, match="function_matching: temperature is 0"):
        FunctionMatching(plain(), plain(), temperature=0.0)
