"""patch_attention: its formula, what it does not see, and what stands for a class token where there is none."""

import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import PatchAttention, build_losses, parse_methods, patch_attention_loss


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(
    batch: int = 2, patches: int = 5, student: int = 4, teacher: int = 6
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        random(batch, student),
        random(batch, patches, student, seed=1),
        random(batch, teacher, seed=2),
        random(batch, patches, teacher, seed=3),
    )


def slow_cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return dot / math.sqrt(sum(x * x for x in a.tolist()) * sum(y * y for y in b.tolist()))


def slow(own_class: Tensor, own: Tensor, other_class: Tensor, other: Tensor) -> float:
    batch, patches = own.shape[:2]
    total = 0.0
    for b in range(batch):
        for n in range(patches):
            total += (slow_cosine(own_class[b], own[b, n]) - slow_cosine(other_class[b], other[b, n])) ** 2
    return total / (batch * patches)


def test_it_is_the_mean_squared_difference_of_cosines() -> None:
    given = tokens()
    assert float(patch_attention_loss(*given)) == pytest.approx(slow(*given), rel=1e-12)


def test_known_vectors() -> None:
    """Cosines 1, 0 and -1 against 0, 0 and 0.6: (1 + 0 + 2.56) / 3."""
    own = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]], dtype=torch.float64)
    other = torch.tensor([[[0.0, 1.0], [0.0, -1.0], [3.0, 4.0]]], dtype=torch.float64)
    class_token = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    loss = patch_attention_loss(class_token, own, class_token, other)
    torch.testing.assert_close(loss, torch.tensor(3.56 / 3, dtype=torch.float64))


def test_it_is_the_class_tokens_row_of_the_gram_matrix() -> None:
    own_class, own, other_class, other = tokens(student=6)

    def gram(class_token: Tensor, patches: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(torch.cat([class_token.unsqueeze(1), patches], 1), dim=-1)
        return (unit @ unit.transpose(1, 2))[:, 0, 1:]

    expected = (gram(own_class, own) - gram(other_class, other)).square().mean()
    torch.testing.assert_close(patch_attention_loss(own_class, own, other_class, other), expected)


def test_rotations_and_lengths_do_not_count() -> None:
    own_class, own, other_class, other = tokens()
    loss = patch_attention_loss(own_class, own, other_class, other)
    turn = torch.linalg.qr(random(4, 4, seed=7)).Q
    lengths = random(2, 5, 1, seed=8).abs() + 0.1
    torch.testing.assert_close(
        patch_attention_loss(3 * own_class @ turn, lengths * own @ turn, other_class, other), loss
    )
    assert float(patch_attention_loss(own_class, own, 2 * own_class @ turn, own @ turn)) < 1e-28


def test_the_gradient_is_the_students_alone_and_right() -> None:
    own_class, own, other_class, other = (given.requires_grad_() for given in tokens())
    patch_attention_loss(own_class, own, other_class, other).backward()
    assert other_class.grad is None and other.grad is None
    assert own_class.grad is not None and own.grad is not None and own.grad.abs().min() > 0
    teacher = (other_class.detach(), other.detach())
    assert torch.autograd.gradcheck(lambda a, b: patch_attention_loss(a, b, *teacher), (own_class, own))


def test_half_precision_is_promoted() -> None:
    given = [of.float() for of in tokens()]
    with torch.autocast("cpu", torch.bfloat16):
        loss = patch_attention_loss(*(of.bfloat16() for of in given))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, patch_attention_loss(*given), atol=1e-2, rtol=0)


def test_the_method_is_the_mean_over_paired_blocks(plain, make_outputs) -> None:
    student, teacher = plain(depth=2, width=4), plain(depth=6, width=8)
    (built,) = build_losses(parse_methods("patch_attention"), student, teacher)
    loss = built.module
    assert built.weight == 0.8
    assert [(pair.student, pair.teacher) for pair in loss.pairs] == [("blocks.0", "blocks.2"), ("blocks.1", "blocks.5")]
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    assert list(own.class_tokens) == ["blocks.0", "blocks.1"]
    by_hand = [
        slow(
            own.class_tokens[pair.student],
            own.maps[pair.student].flatten(2).transpose(1, 2),
            other.class_tokens[pair.teacher],
            other.maps[pair.teacher].flatten(2).transpose(1, 2),
        )
        for pair in loss.pairs
    ]
    assert loss(own, other).item() == pytest.approx(sum(by_hand) / 2, rel=1e-12)


def test_equal_depths_pair_all_blocks(plain) -> None:
    loss = PatchAttention(plain(depth=12), plain(depth=12))
    assert [(pair.student, pair.teacher) for pair in loss.pairs] == [(f"blocks.{i}",) * 2 for i in range(12)]
    assert loss.notes == ()


def test_without_a_class_token_the_mean_of_the_patches_stands_for_it(plain, make_outputs) -> None:
    facts = plain(depth=1)
    loss = PatchAttention(facts, facts)
    own, other = make_outputs(facts, loss.student_request), make_outputs(facts, loss.teacher_request, seed=1)
    own.class_tokens.clear()
    without = loss(own, other)
    own.class_tokens["blocks.0"] = own.maps["blocks.0"].mean((2, 3))
    torch.testing.assert_close(without, loss(own, other))


def test_unequal_grids_are_resized_and_said(plain, pyramid, make_outputs) -> None:
    student, teacher = plain(depth=1, grid=8), plain(depth=1, grid=4)
    loss = PatchAttention(student, teacher)
    assert loss.notes == ("patch_attention: student blocks.0 (8x8) is resized to teacher blocks.0 (4x4).",)
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    pooled = torch.nn.functional.avg_pool2d(own.maps["blocks.0"], 2)
    expected = patch_attention_loss(
        own.class_tokens["blocks.0"],
        pooled.flatten(2).transpose(1, 2),
        other.class_tokens["blocks.0"],
        other.maps["blocks.0"].flatten(2).transpose(1, 2),
    )
    torch.testing.assert_close(loss(own, other), expected)
    mixed = PatchAttention(pyramid(), plain())
    assert [pair.student for pair in mixed.pairs] == ["stages.0", "stages.1", "stages.2"]
    value = mixed(make_outputs(pyramid(), mixed.student_request), make_outputs(plain(), mixed.teacher_request, seed=1))
    assert value.isfinite()


def test_detectors_are_refused(detector, plain) -> None:
    with pytest.raises(UserError, match="patch_attention compares what classifiers say"):
        PatchAttention(detector(), detector())
