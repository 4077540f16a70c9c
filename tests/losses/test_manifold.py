import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import Manifold, manifold_full, manifold_inter, manifold_intra, manifold_random

TERMS = [manifold_intra, manifold_inter, manifold_full]


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def full_maps(student: Tensor, teacher: Tensor) -> Tensor:
    """The explicit (BN, BN) map of squared differences."""
    s, t = (x.reshape(-1, x.shape[-1]) for x in (student, teacher))
    s, t = s / s.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
    return (s @ s.T - t @ t.T) ** 2


def test_all_terms_equal_a_slow_loop_over_cosines() -> None:
    student, teacher = features(2, 3, 4), features(2, 3, 6, seed=1)

    def cosine(x: Tensor, a: tuple[int, int], b: tuple[int, int]) -> float:
        u, v = x[a].tolist(), x[b].tolist()
        dot = sum(p * q for p, q in zip(u, v, strict=True))
        return dot / math.sqrt(sum(p * p for p in u) * sum(q * q for q in v))

    points = [(b, n) for b in range(2) for n in range(3)]
    squares = {(a, b): (cosine(student, a, b) - cosine(teacher, a, b)) ** 2 for a in points for b in points}
    intra = [v for (a, b), v in squares.items() if a[0] == b[0]]
    inter = [v for (a, b), v in squares.items() if a[1] == b[1]]
    assert manifold_intra(student, teacher).item() == pytest.approx(sum(intra) / len(intra), rel=1e-12)
    assert manifold_inter(student, teacher).item() == pytest.approx(sum(inter) / len(inter), rel=1e-12)
    assert manifold_full(student, teacher).item() == pytest.approx(sum(squares.values()) / 36, rel=1e-12)


def test_decoupled_terms_are_blocks_of_the_full_map() -> None:
    student, teacher = features(4, 5, 6), features(4, 5, 9, seed=1)
    blocks = full_maps(student, teacher).reshape(4, 5, 4, 5)
    torch.testing.assert_close(
        manifold_intra(student, teacher), torch.stack([blocks[b, :, b] for b in range(4)]).mean()
    )
    torch.testing.assert_close(
        manifold_inter(student, teacher), torch.stack([blocks[:, n, :, n] for n in range(5)]).mean()
    )


def test_random_isotropic_features_give_the_expected_values() -> None:
    batch, count, own, other = 64, 196, 192, 384
    student = features(batch, count, own, dtype=torch.float32)
    teacher = features(batch, count, other, seed=1, dtype=torch.float32)
    spread = 1 / own + 1 / other
    values = [manifold_intra(student, teacher), manifold_inter(student, teacher), manifold_random(student, teacher)]
    # Means over 2.5 million, 0.8 million and 37 thousand entries: the narrower the more entries.
    for value, size, tolerance in zip(values, (count, batch, 192), (0.005, 0.005, 0.03), strict=True):
        assert value.item() == pytest.approx((1 - 1 / size) * spread, rel=tolerance)
    assert 4 * values[0].item() + 0.1 * values[1].item() + 0.2 * values[2].item() == pytest.approx(0.0335, rel=0.01)


@pytest.mark.parametrize("term", TERMS)
def test_rotation_scale_and_token_length_do_not_matter(term) -> None:
    student, teacher = features(3, 5, 6), features(3, 5, 9, seed=1)
    rotation = torch.linalg.qr(features(6, 6, seed=2)).Q
    lengths = features(3, 5, 1, seed=3).exp()
    torch.testing.assert_close(term(student @ rotation * 7.5, teacher), term(student, teacher))
    torch.testing.assert_close(term(student * lengths, teacher), term(student, teacher))


@pytest.mark.parametrize("term", [*TERMS, manifold_random])
def test_isometric_embedding_is_perfect(term) -> None:
    student = features(3, 5, 6)
    embedding = torch.linalg.qr(features(9, 6, seed=2)).Q.T  # 6 orthonormal rows in 9 dimensions
    assert term(student, student @ embedding).item() == pytest.approx(0, abs=1e-14)


def test_common_permutations_do_not_matter() -> None:
    student, teacher = features(4, 5, 6), features(4, 5, 9, seed=1)
    patches, images = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 3, 0, 1])
    for term in (manifold_intra, manifold_full):
        torch.testing.assert_close(term(student[:, patches], teacher[:, patches]), term(student, teacher))
    for term in (manifold_inter, manifold_full):
        torch.testing.assert_close(term(student[images], teacher[images]), term(student, teacher))
    # A permutation of one model alone does matter.
    assert not torch.isclose(manifold_intra(student[:, patches], teacher), manifold_intra(student, teacher))


def test_trace_form_equals_the_explicit_map_and_its_gradient_the_closed_form() -> None:
    student, teacher = features(3, 7, 5), features(3, 7, 8, seed=1)
    torch.testing.assert_close(manifold_full(student, teacher), full_maps(student, teacher).mean(), rtol=1e-12, atol=0)
    # At unit rows, the gradient is that of the trace form projected off each row (lengths do not matter).
    s = torch.nn.functional.normalize(student.reshape(21, 5), dim=1).requires_grad_()
    t = torch.nn.functional.normalize(teacher.reshape(21, 8), dim=1)
    manifold_full(s.reshape(3, 7, 5), teacher).backward()
    rows = s.detach()
    closed = 4 * (rows @ (rows.T @ rows) - t @ (t.T @ rows)) / 21**2
    closed = closed - (closed * rows).sum(1, keepdim=True) * rows
    torch.testing.assert_close(s.grad, closed, rtol=1e-10, atol=1e-14)


def test_trace_form_is_accurate_in_float32() -> None:
    teacher = features(8, 49, 32)
    student = teacher + 0.05 * features(8, 49, 32, seed=1)
    exact = manifold_full(student, teacher)
    assert exact.item() < 2e-3
    torch.testing.assert_close(manifold_full(student.float(), teacher.float()).double(), exact, rtol=1e-4, atol=0)


def test_random_term_with_all_patches_is_the_full_map() -> None:
    student, teacher = features(3, 5, 6), features(3, 5, 9, seed=1)
    for count in (15, 192):
        torch.testing.assert_close(
            manifold_random(student, teacher, count), manifold_full(student, teacher), rtol=1e-12, atol=0
        )


def test_random_term_draws_distinct_rows_the_same_for_both() -> None:
    student, teacher = features(3, 5, 6), features(3, 5, 9, seed=1)
    generator = torch.Generator().manual_seed(3)
    value = manifold_random(student, teacher, 4, generator)
    rows = torch.randperm(15, generator=torch.Generator().manual_seed(3))[:4]
    assert len(set(rows.tolist())) == 4
    torch.testing.assert_close(value, full_maps(student, teacher)[rows][:, rows].mean())
    assert not torch.isclose(manifold_random(student, teacher, 4, generator), value)  # drawn anew


@pytest.mark.parametrize("term", [*TERMS, lambda s, t: manifold_random(s, t, 4, torch.Generator().manual_seed(0))])
def test_gradcheck_and_no_gradient_to_the_teacher(term) -> None:
    student, teacher = features(2, 3, 4).requires_grad_(), features(2, 3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: term(s, teacher), (student,))
    term(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("term", TERMS)
def test_half_precision_is_computed_in_float32(term, dtype: torch.dtype) -> None:
    student, teacher = (1e4 * features(3, 5, 6)).to(dtype), (1e-3 * features(3, 5, 9, seed=1)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = term(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, term(student.float(), teacher.float()), rtol=0, atol=0)


def test_zero_tokens_have_finite_gradients() -> None:
    student = torch.zeros(2, 3, 4, requires_grad=True)
    manifold_intra(student, features(2, 3, 5).float()).backward()
    assert torch.isfinite(student.grad).all()


def test_method_is_the_weighted_mean_over_first_and_last_blocks(plain, make_outputs) -> None:
    student, teacher = plain(depth=12, width=6), plain(depth=24, width=8)
    loss = Manifold(student, teacher, random=0.0)
    assert [p.student for p in loss.pairs] == [f"blocks.{i}" for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert [p.teacher for p in loss.pairs] == [f"blocks.{i}" for i in (0, 1, 2, 3, 20, 21, 22, 23)]
    assert loss.notes == ()
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    expected = 0.0
    for pair in loss.pairs:
        s = own.maps[pair.student].flatten(2).transpose(1, 2)
        t = other.maps[pair.teacher].flatten(2).transpose(1, 2)
        expected += (4 * manifold_intra(s, t) + 0.1 * manifold_inter(s, t)).item() / 8
    assert loss(own, other).item() == pytest.approx(expected, rel=1e-12)


def test_terms_add_up_and_full_stands_alone(plain, make_outputs) -> None:
    facts = plain(depth=2)
    weights = {"intra": 4.0, "inter": 0.1, "random": 0.2, "full": 0.7}
    losses = [Manifold(facts, facts, **{**dict.fromkeys(weights, 0.0), name: w}) for name, w in weights.items()]
    both = Manifold(facts, facts, **weights)
    own, other = make_outputs(facts, both.student_request), make_outputs(facts, both.teacher_request, seed=1)
    parts = [loss(own, other) for loss in losses]
    # 3 images of 16 patches: 192 random patches are all patches, so nothing here depends on the draw.
    torch.testing.assert_close(both(own, other), torch.stack(parts).sum())
    maps = [(own.maps[f"blocks.{i}"], other.maps[f"blocks.{i}"]) for i in range(2)]
    full = [manifold_full(*(m.flatten(2).transpose(1, 2) for m in pair)) for pair in maps]
    torch.testing.assert_close(parts[3], 0.7 * torch.stack(full).mean())


@pytest.mark.parametrize("how", ["resize", "merge"])
def test_pyramids_meet_by_equal_stride_or_on_a_common_grid(pyramid, plain, make_outputs, how) -> None:
    cases = [
        # strides 1, 2, 4 against 2, 4, 8: two are shared
        (pyramid(side=8), pyramid(grids=(8, 4, 2), side=16), [("stages.1", "stages.0"), ("stages.2", "stages.1")]),
        (
            pyramid(side=8),
            plain(depth=6, grid=4),
            [("stages.0", "blocks.1"), ("stages.1", "blocks.3"), ("stages.2", "blocks.5")],
        ),
        (
            plain(depth=6, grid=4),
            pyramid(side=8),
            [("blocks.1", "stages.0"), ("blocks.3", "stages.1"), ("blocks.5", "stages.2")],
        ),
    ]
    for student, teacher, expected in cases:
        loss = Manifold(student, teacher, on_grid_mismatch=how)
        assert [(p.student, p.teacher) for p in loss.pairs] == expected
        own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
        value = loss(own, other)
        value.backward()
        assert value.item() > 0
        assert all(m.grad.abs().sum() > 0 for m in own.maps.values())


def test_large_pyramid_levels_are_reduced(pyramid, make_outputs) -> None:
    facts = pyramid(channels=(3,), grids=(8,), side=32)
    loss = Manifold(facts, facts, max_tokens=16, random=0.0, inter=0.0, intra=1.0)
    assert "compared on 4x4 cells" in loss.notes[0]
    own, other = make_outputs(facts, loss.student_request), make_outputs(facts, loss.teacher_request, seed=1)
    s, t = (torch.nn.functional.avg_pool2d(o.maps["stages.0"], 2).flatten(2).transpose(1, 2) for o in (own, other))
    torch.testing.assert_close(loss(own, other), manifold_intra(s, t))


def test_refuses_bad_options_and_grids(plain, pyramid) -> None:
    facts = plain()
    for options, message in [
        ({"intra": 0.0, "inter": 0.0, "random": 0.0}, "all 0"),
        ({"intra": -1.0}, "intra is -1"),
        ({"num_patches": 0}, "num_patches is 0"),
        ({"first": 0, "last": 0}, "choose no block"),
        ({"pairs": [("blocks.0", "block.3")]}, "Did you mean 'blocks.3'"),
        ({"pairs": []}, "empty"),
    ]:
        with pytest.raises(UserError, match=message):
            Manifold(facts, facts, **options)
    with pytest.raises(UserError, match="4x4 cells and the teacher's 5x5"):
        Manifold(facts, plain(grid=5), on_grid_mismatch="error")
    with pytest.raises(UserError, match="5x5 cells cannot be merged into 4x4"):
        Manifold(facts, plain(grid=5), on_grid_mismatch="merge")
