"""The Distiller's promises: a frozen, unregistered teacher; weighted terms; no side effects of measuring gradients."""

import pytest
import torch
from torch import Tensor, nn

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.losses.build import build_losses
from limbeck.losses.names import parse_methods
from limbeck.models import load_model
from limbeck.models.cifar import create

METHODS = ["none", "kd", "nkd", "reviewkd", "manifold", "vitkd", "kd+reviewkd"]


def pair(classes: int = 7) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return create("resnet14", classes, input_size=(16, 16)), create("resnet8", classes, input_size=(16, 16))


def batch(classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, 16, 16, generator=generator), torch.arange(6) % classes


@pytest.mark.parametrize("method", METHODS)
def test_total_is_the_weighted_sum_of_the_named_terms(method: str) -> None:
    distiller = Distiller(*pair(), method)
    distiller.set_epoch(5)
    terms = distiller(*batch())
    weights = dict(zip(distiller.loss_names, distiller.loss_weights.tolist(), strict=True)) | {
        "task": distiller.task_weight
    }
    assert set(terms) == {*weights, "total"}
    expected = sum(weight * terms[name] for name, weight in weights.items())
    torch.testing.assert_close(terms["total"], expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_changes_student_and_projectors_and_nothing_else(method: str) -> None:
    teacher, student = pair()
    distiller = Distiller(teacher, student, method).train()
    assert not teacher.training
    before_teacher = {name: value.clone() for name, value in teacher.state_dict().items()}
    trained = dict(distiller.trained_parameters())
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    distiller.set_epoch(30)
    distiller(*batch())["total"].backward()
    optimizer.step()
    assert all(torch.equal(value, before_teacher[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    unchanged = [name for name, parameter in trained.items() if torch.equal(parameter, before[name])]
    # With features only, the classifier has no gradient but the task's; here every method keeps a task weight.
    assert unchanged == [], unchanged


def test_the_teacher_is_no_part_of_what_is_saved_or_optimised() -> None:
    teacher, student = pair()
    distiller = Distiller(teacher, student, "kd")
    assert all(key.startswith(("student.", "losses.")) for key in distiller.state_dict())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in distiller.parameters()}
    distiller.to(torch.float64)
    assert next(teacher.parameters()).dtype == torch.float64, "the teacher follows .to()"


def test_warm_up_counts_epochs_from_zero() -> None:
    distiller = Distiller(*pair(), "kd(weight=2.0, warmup_epochs=20)")
    observed = []
    for epoch in (0, 1, 10, 20, 25):
        distiller.set_epoch(epoch)
        observed.append(distiller.loss_weights.item())
    assert observed == pytest.approx([0.0, 0.1, 1.0, 2.0, 2.0])


def test_without_distillation_total_and_gradients_are_the_task_alone() -> None:
    teacher, student = pair()
    images, target = batch()
    distiller = Distiller(teacher, student, "none").train()
    distiller(images, target)["total"].backward()
    gradients = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    torch.nn.functional.cross_entropy(student(images).logits, target).backward()
    for ours, plain in zip(gradients, student.parameters(), strict=True):
        torch.testing.assert_close(ours, plain.grad)


def test_measuring_gradient_norms_leaves_no_trace_and_is_right() -> None:
    teacher, student = pair()
    images, target = batch()
    distiller = Distiller(teacher, student, "kd+manifold").train()
    distiller.set_epoch(3)
    state = {name: value.clone() for name, value in distiller.state_dict().items()}
    random_state = torch.random.get_rng_state()
    norms = distiller.gradient_norms(images, target)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in distiller.state_dict().items())
    assert all(p.grad is None for p in distiller.parameters())
    term = distiller(images, target)["kd"] * distiller.loss_weights[0]
    gradients = torch.autograd.grad(term, list(student.parameters()), allow_unused=True)
    expected = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
    assert norms["kd"] == pytest.approx(float(expected), rel=1e-4)
    assert norms["manifold"] > 0
    assert norms["task"] > 0


def test_logit_losses_refuse_models_of_different_classes_and_feature_losses_do_not() -> None:
    teacher, student = create("resnet14", 5, input_size=(16, 16)), create("resnet8", 7, input_size=(16, 16))
    for method in ("kd", "nkd"):
        with pytest.raises(UserError, match=r"has 5 classes and the student .* has 7"):
            Distiller(teacher, student, method)
    assert Distiller(teacher, student, "manifold")(*batch())["total"].isfinite()


def test_unlabelled_images_need_label_free_losses() -> None:
    with pytest.raises(UserError, match="nkd reads labels"):
        Distiller(*pair(), "nkd", task_loss=None)
    with pytest.raises(UserError, match="nothing to learn"):
        Distiller(*pair(), "none", task_loss=None)
    terms = Distiller(*pair(), "kd", task_loss=None)(batch()[0])
    assert set(terms) == {"kd", "total"}


def test_a_method_needs_a_teacher_and_one_that_is_not_the_student() -> None:
    teacher, student = pair()
    built = build_losses(parse_methods("kd"), student.facts, teacher.facts)
    for losses in ("kd", built):
        with pytest.raises(UserError, match="kd needs a teacher"):
            Distiller(None, student, losses)
    with pytest.raises(UserError, match="same object"):
        Distiller(student, student, "kd")


def test_the_teacher_answers_in_eval_mode_whoever_switched_it() -> None:
    teacher, student = pair()
    distiller = Distiller(teacher, student, "kd").train()
    teacher.train()
    running = {name: value.clone() for name, value in teacher.state_dict().items()}
    distiller(*batch())
    assert not teacher.training
    assert all(torch.equal(value, running[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(("method", "weight"), [("none", 1.0), ("kd", 0.1), ("nkd", 1.0), ("kd+reviewkd", 1.0)])
def test_automatic_task_weight(method: str, weight: float) -> None:
    assert Distiller(*pair(), method).task_weight == weight


@pytest.mark.parametrize("weight", ["much", -1.0, float("nan")])
def test_impossible_task_weights_are_refused(weight: float | str) -> None:
    with pytest.raises(UserError, match="task weight"):
        Distiller(*pair(), "kd", task_weight=weight)


@pytest.mark.compile
@pytest.mark.parametrize("method", ["kd", "nkd", "reviewkd", "manifold", "vitkd"])
def test_compiled_terms_equal_eager_ones(method: str) -> None:
    distiller = Distiller(*pair(), method).eval()
    distiller.set_epoch(30)
    images, target = batch()
    torch.manual_seed(0)
    eager = distiller(images, target)
    distiller.compile(backend="aot_eager")
    torch.manual_seed(0)
    compiled = distiller(images, target)
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name])


def test_a_distillation_head_alone_is_refused() -> None:
    student = load_model(
        "deit_tiny_distilled_patch16_224(depth=2, embed_dim=48, num_heads=3)",
        pretrained=False, num_classes=10, input_size=(32, 32),
    )  # fmt: skip
    teacher = load_model("limbeck:resnet8", pretrained=False, num_classes=10)
    with pytest.raises(UserError, match="token=False"):
        Distiller(teacher, student, "deit", task_weight=0.0)
    with pytest.raises(UserError, match="token=False"):
        Distiller(teacher, student, "deit", task_loss=None)
    Distiller(teacher, student, "deit(token=False)", task_loss=None)
