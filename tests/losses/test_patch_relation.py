"""patch_relation: its formula in loops, what it does not see, and the projector."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import PatchRelation, build_losses, parse_methods, patch_relation_loss


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_rows(patches: list[list[float]], temperature: float) -> list[list[float]]:
    """Row by row, the softmax of a patch's cosines with all patches."""
    rows = []
    for a in patches:
        cosines = []
        for b in patches:
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            cosines.append(dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))
        weights = [math.exp((cosine - 1) / temperature) for cosine in cosines]
        rows.append([weight / sum(weights) for weight in weights])
    return rows


def slow(own: Tensor, other: Tensor, temperature: float) -> float:
    total, count = 0.0, 0
    for own_image, other_image in zip(own.tolist(), other.tolist(), strict=True):
        for q, p in zip(slow_rows(own_image, temperature), slow_rows(other_image, temperature), strict=True):
            total += sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q, strict=True))
            count += 1
    return total / count


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_it_is_the_mean_divergence_of_rows(temperature: float) -> None:
    own, other = random(2, 5, 3), random(2, 5, 4, seed=1)
    assert float(patch_relation_loss(own, other, temperature)) == pytest.approx(slow(own, other, temperature), rel=1e-9)


def test_known_vectors() -> None:
    """Two patches: equal ones have rows (1/2, 1/2), those at a right angle (e, 1)/(e + 1) at temperature 1."""
    equal = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]], dtype=torch.float64)
    apart = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]], dtype=torch.float64)
    p = math.e / (math.e + 1)
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(patch_relation_loss(equal, apart, 1.0)) == pytest.approx(expected, rel=1e-12)
    assert float(patch_relation_loss(apart, apart, 1.0)) == pytest.approx(0.0, abs=1e-15)


def test_rotations_lengths_and_a_common_order_do_not_count() -> None:
    own, other = random(2, 5, 4), random(2, 5, 6, seed=1)
    loss = patch_relation_loss(own, other)
    turn, order = torch.linalg.qr(random(4, 4, seed=7)).Q, torch.tensor([3, 0, 4, 1, 2])
    lengths = random(2, 5, 1, seed=8).abs() + 0.1
    torch.testing.assert_close(patch_relation_loss(lengths * own @ turn, 3 * other), loss)
    torch.testing.assert_close(patch_relation_loss(own[:, order], other[:, order]), loss)
    assert abs(float(patch_relation_loss(own @ turn, own))) < 1e-12


def test_the_gradient_is_the_students_alone_and_right() -> None:
    own, other = random(2, 4, 3).requires_grad_(), random(2, 4, 3, seed=1).requires_grad_()
    patch_relation_loss(own, other).backward()
    assert other.grad is None and own.grad is not None
    assert torch.autograd.gradcheck(lambda x: patch_relation_loss(x, other.detach(), 0.3), (own,))


def test_half_precision_is_promoted() -> None:
    own, other = random(2, 5, 4).float(), random(2, 5, 4, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(patch_relation_loss(own, other), patch_relation_loss(own.float(), other))
        assert patch_relation_loss(own.bfloat16(), other.bfloat16()).dtype == torch.float32


def test_the_method_projects_the_student_and_reads_the_final_maps(plain, make_outputs) -> None:
    student, teacher = plain(width=4), plain(width=6)
    (built,) = build_losses(parse_methods("patch_relation"), student, teacher)
    loss = built.module
    assert (built.weight, loss.needs_labels, loss.notes) == (1.0, False, ())
    assert [(pair.student, pair.teacher) for pair in loss.pairs] == [("final", "final")]
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    patches = own.final.flatten(2).transpose(1, 2).float()
    expected = slow(loss.projector(patches), other.final.flatten(2).transpose(1, 2), 0.07)
    assert float(loss(own, other, torch.rand(3, 5).softmax(1))) == pytest.approx(expected, rel=1e-4)
    loss(own, other).backward()
    assert own.final.grad.abs().max() > 0 and other.final.grad is None
    assert loss.projector.weight.grad.abs().max() > 0

    bare = PatchRelation(student, teacher, projector=False)
    assert not list(bare.parameters())
    expected = slow(own.final.flatten(2).transpose(1, 2), other.final.flatten(2).transpose(1, 2), 0.07)
    assert float(bare(own, other)) == pytest.approx(expected, rel=1e-9)


def test_unequal_grids_meet_on_the_coarser_one(plain, pyramid, make_outputs) -> None:
    student, teacher = plain(grid=8), replace(pyramid(), final=None)
    loss = PatchRelation(student, teacher, projector=False)
    assert [(pair.student, pair.teacher) for pair in loss.pairs] == [("blocks.11", "stages.2")]
    assert loss.notes == (
        "patch_relation: student blocks.11 (8x8) and teacher stages.2 (2x2) are compared on 2x2 cells.",
    )
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    pooled = torch.nn.functional.avg_pool2d(own.maps["blocks.11"], 4)
    expected = patch_relation_loss(*(of.flatten(2).transpose(1, 2) for of in (pooled, other.maps["stages.2"])))
    torch.testing.assert_close(loss(own, other), expected)


def test_what_cannot_be_compared_is_refused(plain) -> None:
    with pytest.raises(UserError, match="patch_relation: temperature is 0"):
        PatchRelation(plain(), plain(), temperature=0.0)
    with pytest.raises(UserError, match="patch_relation compares feature maps, but vit offers none"):
        PatchRelation(plain(), replace(plain(), levels=(), final=None))
