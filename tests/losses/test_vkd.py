"""vkd: the normalised target, and a projection that stays orthogonal through everything that training does to it."""

import copy
import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import VkD, build_losses, parse_methods, vkd_loss
from limbeck.outputs import Outputs

MAPS = ("cayley", "matrix_exp")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(projected: Tensor, teacher: Tensor) -> float:
    batch, channels = projected.shape
    total = 0.0
    for own, other in zip(projected.tolist(), teacher.tolist(), strict=True):
        mean = sum(other) / channels
        deviation = math.sqrt(sum((value - mean) ** 2 for value in other) / channels + 1e-5)
        for s, t in zip(own, other, strict=True):
            gap = abs(s - (t - mean) / deviation)
            total += gap**2 / 2 if gap < 1 else gap - 0.5
    return total / (batch * channels)


def off(matrix: Tensor) -> float:
    """How far (Dt, Ds) is from orthonormal columns, or rows if it is wide."""
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    return float((gram - torch.eye(len(gram), dtype=gram.dtype)).detach().abs().max())


def test_it_is_smooth_l1_to_the_normalised_vector() -> None:
    projected, teacher = 2 * random(3, 7), 5 * random(3, 7, seed=1) + 2
    assert float(vkd_loss(projected, teacher)) == pytest.approx(slow(projected, teacher), rel=1e-12)


def test_known_vectors() -> None:
    """The target of (1, 3) is (-1, 1); gaps 0.5 and 2 cost 0.125 and 1.5."""
    loss = vkd_loss(torch.tensor([[-0.5, 3.0]]), torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(loss, torch.tensor(0.8125), rtol=1e-4, atol=0)


def test_scale_and_offset_of_the_teacher_do_not_count() -> None:
    projected, teacher = random(3, 7), random(3, 7, seed=1)
    torch.testing.assert_close(vkd_loss(projected, 9 * teacher - 4), vkd_loss(projected, teacher), rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_students_alone_and_right() -> None:
    projected, teacher = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    vkd_loss(projected, teacher).backward()
    assert teacher.grad is None and projected.grad is not None and projected.grad.abs().min() > 0
    assert torch.autograd.gradcheck(lambda s: vkd_loss(s, teacher.detach()), projected)


@pytest.mark.parametrize("orthogonal_map", MAPS)
@pytest.mark.parametrize(("own", "other"), [(4, 6), (6, 6), (6, 4)])
def test_the_projection_stays_orthogonal_while_it_learns_and_decays(
    orthogonal_map: str, own: int, other: int, plain, make_outputs
) -> None:
    student, teacher = plain(width=own), plain(width=other)
    loss = VkD(student, teacher, orthogonal_map=orthogonal_map).double()
    mine, theirs = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    before = loss.projection.weight.detach().clone()
    assert before.shape == (other, own) and off(before) < 1e-6
    optimiser = torch.optim.AdamW(loss.parameters(), lr=0.1, weight_decay=0.1)
    values = []
    for _ in range(10):
        optimiser.zero_grad()
        value = loss(mine, theirs)
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
        assert off(loss.projection.weight) < 1e-6
    assert values[-1] < values[0]
    assert not torch.allclose(loss.projection.weight, before, atol=0.1)


def test_lengths_and_angles_of_a_narrow_student_are_kept(plain) -> None:
    loss = VkD(plain(width=4), plain(width=9)).double()
    vectors = random(5, 4)
    projected = vectors @ loss.projection.weight.T
    torch.testing.assert_close(projected @ projected.T, vectors @ vectors.T, rtol=1e-5, atol=1e-5)
    assert loss.notes == ()
    wide = VkD(plain(width=9), plain(width=4)).double()
    assert wide.notes == (
        "vkd: the student's vector is wider (9) than the teacher's (4); only 4 directions of it, which are learnt, are "
        "compared.",
    )
    ignored = torch.linalg.svd(wide.projection.weight.detach()).Vh[4:]
    assert float((ignored @ wide.projection.weight.T).detach().abs().max()) < 1e-6


def test_copies_and_states_project_alike(plain, make_outputs) -> None:
    student, teacher = plain(width=4), plain(width=6)
    loss = VkD(student, teacher)
    own = make_outputs(student, loss.student_request, dtype=torch.float32)
    other = make_outputs(teacher, loss.teacher_request, seed=1, dtype=torch.float32)
    optimiser = torch.optim.SGD(loss.parameters(), lr=5.0)
    loss(own, other).backward()
    optimiser.step()
    value = loss(own, other)
    again = VkD(student, teacher)
    assert not torch.equal(again(own, other), value)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again(own, other), value)
    assert torch.equal(copy.deepcopy(loss)(own, other), value)
    loss.to(torch.float64)
    assert off(loss.projection.weight) < 1e-5


def test_autocast_leaves_the_projection_exact(plain, make_outputs) -> None:
    student, teacher = plain(width=8), plain(width=16)
    loss = VkD(student, teacher)
    own = make_outputs(student, loss.student_request, dtype=torch.float32)
    other = make_outputs(teacher, loss.teacher_request, seed=1, dtype=torch.float32)
    value = loss(own, other)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(own, other), value)
        half = loss(Outputs(own.logits, final=own.final.bfloat16()), Outputs(other.logits, other.pooled.bfloat16()))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, value, rtol=2e-2, atol=0)


def test_which_of_the_students_vectors(plain, pyramid, make_outputs) -> None:
    """Of a plain transformer the mean of the patches after the final norm, of others what enters the classifier."""
    vit, cnn = plain(width=6), pyramid()
    for loss, named in (
        (VkD(vit, cnn), "final"),
        (VkD(vit, cnn, vector="pooled"), "pooled"),
        (VkD(cnn, vit), "pooled"),
        (VkD(cnn, vit, vector="patches"), "final"),
    ):
        assert [(pair.student, pair.teacher) for pair in loss.pairs] == [(named, "pooled")]
        assert (loss.student_request.final, loss.student_request.pooled) == (named == "final", named == "pooled")
        student, teacher = (vit, cnn) if loss.projection.in_features == 6 else (cnn, vit)
        own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
        loss = loss.double()
        vector = own.final.flatten(2).mean(2) if named == "final" else own.pooled
        expected = vkd_loss(vector @ loss.projection.weight.T, other.pooled)
        for target in (None, torch.tensor([0, 1, 2]), torch.rand(3, 5)):
            torch.testing.assert_close(loss(own, other, target), expected)
        expected.backward()
        assert other.pooled.grad is None


def test_what_it_cannot_do_is_refused(plain, detector) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match="vkd compares what classifiers say"):
        VkD(detector(), detector())
    with pytest.raises(UserError, match="vit has no final map"):
        VkD(replace(plain(), final=None), plain(), vector="patches")
    assert VkD(replace(plain(), final=None), plain()).student_request.pooled
    with pytest.raises(UserError, match="orthogonal_map is 'householder'; it must be one of"):
        build_losses(parse_methods("vkd(orthogonal_map=householder)"), plain(), plain())
    (built,) = build_losses(parse_methods("vkd"), plain(), plain())
    assert built.weight == 1.0
