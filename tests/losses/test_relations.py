"""at, sp and rkd: baselines without projectors, which compare maps by strength and images with each other."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import (
    RKD,
    SP,
    AttentionTransfer,
    at_loss,
    build_losses,
    parse_methods,
    rkd_loss,
    sp_loss,
)

PURE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"at": at_loss, "sp": sp_loss, "rkd": rkd_loss}
SHAPES = {"at": ((3, 4, 2, 5), (3, 6, 2, 5)), "sp": ((4, 3, 2, 2), (4, 5, 3, 1)), "rkd": ((5, 3), (5, 7))}


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(name: str) -> tuple[Tensor, Tensor]:
    own, other = SHAPES[name]
    return features(*own), features(*other, seed=1)


def length(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def slow_at(student: Tensor, teacher: Tensor, p: float = 2.0) -> float:
    def attention(image: Tensor) -> list[float]:
        channels, height, width = image.shape
        cells = [
            sum(abs(image[c, y, x].item()) ** p for c in range(channels)) / channels
            for y in range(height)
            for x in range(width)
        ]
        return [cell / length(cells) for cell in cells]

    squares = [
        (a - b) ** 2
        for own, other in zip(student, teacher, strict=True)
        for a, b in zip(attention(own), attention(other), strict=True)
    ]
    return sum(squares) / len(squares)


def slow_sp(student: Tensor, teacher: Tensor) -> float:
    def similarities(batch: Tensor) -> list[list[float]]:
        rows = [image.flatten().tolist() for image in batch]
        gram = [[dot(a, b) for b in rows] for a in rows]
        return [[entry / length(row) for entry in row] for row in gram]

    total = 0.0
    for own, other in zip(similarities(student), similarities(teacher), strict=True):
        total += sum((a - b) ** 2 for a, b in zip(own, other, strict=True))
    return total / len(student) ** 2


def slow_rkd(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> float:
    images = range(len(student))

    def way(batch: Tensor, i: int, j: int) -> list[float]:
        return [b - a for a, b in zip(batch[i].tolist(), batch[j].tolist(), strict=True)]

    def relative(batch: Tensor) -> dict[tuple[int, int], float]:
        apart = {(i, j): length(way(batch, i, j)) for i in images for j in images}
        positive = [d for d in apart.values() if d > 0]
        return {key: d / (sum(positive) / len(positive)) for key, d in apart.items()}

    def cosine(batch: Tensor, i: int, j: int, k: int) -> float:
        to_j, to_k = way(batch, i, j), way(batch, i, k)
        lengths = length(to_j) * length(to_k)
        return dot(to_j, to_k) / lengths if lengths else 0.0

    own, other = relative(student), relative(teacher)
    first = sum(huber(own[key] - other[key]) for key in own) / len(student) ** 2
    second = sum(
        huber(cosine(student, i, j, k) - cosine(teacher, i, j, k)) for i in images for j in images for k in images
    )
    return distance * first + angle * second / len(student) ** 3


@pytest.mark.parametrize(("name", "slow"), [("at", slow_at), ("sp", slow_sp), ("rkd", slow_rkd)])
def test_equals_a_slow_loop(name: str, slow: Callable[[Tensor, Tensor], float]) -> None:
    student, teacher = pair(name)
    # Far apart enough that both branches of the smooth L1 are met.
    student = 3 * student**3 + 1
    assert PURE[name](student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-10)


@pytest.mark.parametrize("p", [1.0, 1.5, 4.0])
def test_at_of_another_power_equals_the_loop(p: float) -> None:
    student, teacher = pair("at")
    assert at_loss(student, teacher, p).item() == pytest.approx(slow_at(student, teacher, p), rel=1e-10)


@pytest.mark.parametrize(("distance", "angle"), [(1.0, 0.0), (0.0, 1.0), (3.0, 2.0)])
def test_each_part_of_rkd_equals_the_loop(distance: float, angle: float) -> None:
    student, teacher = pair("rkd")
    expected = slow_rkd(student, teacher, distance, angle)
    assert rkd_loss(student, teacher, distance, angle).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", PURE)
def test_gradients_match_finite_differences_and_the_teacher_has_none(name: str) -> None:
    student, teacher = (of.requires_grad_() for of in pair(name))
    assert torch.autograd.gradcheck(lambda s: PURE[name](s, teacher), (student,))
    PURE[name](student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", PURE)
def test_equal_features_cost_nothing_and_others_something(name: str) -> None:
    student, teacher = pair(name)
    assert PURE[name](student, student).item() == pytest.approx(0, abs=1e-20)
    assert PURE[name](student, teacher) > 1e-3


@pytest.mark.parametrize("name", PURE)
def test_a_rotation_of_the_channels_and_a_scale_do_not_count(name: str) -> None:
    """at: tokens' lengths. sp: all Gram entries. rkd: all distances and angles."""
    student, teacher = pair(name)
    turn = torch.linalg.qr(features(student.shape[1], student.shape[1], seed=7)).Q
    turned = 0.01 * torch.einsum("oc,bc...->bo...", turn, student)
    torch.testing.assert_close(PURE[name](turned, teacher), PURE[name](student, teacher))


def test_rkd_does_not_see_where_all_vectors_are() -> None:
    student, teacher = pair("rkd")
    moved = rkd_loss(student + features(3, seed=5), teacher - 4)
    torch.testing.assert_close(moved, rkd_loss(student, teacher))


def test_sp_sees_one_scale_of_all_images_not_each_ones() -> None:
    student, teacher = pair("sp")
    assert not torch.isclose(
        sp_loss(student * torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1), teacher), sp_loss(*pair("sp"))
    )


@pytest.mark.parametrize("name", ["sp", "rkd"])
def test_the_order_of_the_images_does_not_count(name: str) -> None:
    student, teacher = pair(name)
    order = torch.randperm(len(student))
    torch.testing.assert_close(PURE[name](student[order], teacher[order]), PURE[name](student, teacher))


def test_known_values() -> None:
    # at: all strength in one of four cells against another: (1 + 1) / 4.
    own, other = torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2)
    own[0, 0, 0, 0], other[0, :, 1, 1] = -7.0, 0.1
    assert at_loss(own, other).item() == pytest.approx(0.5)
    # sp: two images alike against two at right angles: every row is (1, 1)/√2 against (1, 0).
    alike, apart = torch.ones(2, 3), torch.eye(2)
    assert sp_loss(alike, apart).item() == pytest.approx(2 * ((math.sqrt(0.5) - 1) ** 2 + 0.5) / 4)
    # rkd: a triangle of sides 3, 4, 5 (their mean is 4) against one of equal sides.
    right = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    equal = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert rkd_loss(right, equal, 1.0, 0.0).item() == pytest.approx(4 * 0.25**2 / 2 / 9)
    cosines = sum((cosine - 0.5) ** 2 for cosine in (0.0, 0.6, 0.8))
    assert rkd_loss(right, equal, 0.0, 1.0).item() == pytest.approx(2 * cosines / 2 / 27)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", ["sp", "rkd"])
def test_one_image_or_two_are_finite(name: str, images: int) -> None:
    own, other = SHAPES[name]
    student = features(images, *own[1:]).float().requires_grad_()
    loss = PURE[name](student, features(images, *other[1:], seed=1).float())
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()
    if name == "rkd" or images == 1:
        assert loss.item() == pytest.approx(0, abs=1e-10)


def test_rkd_of_images_at_one_place_is_finite_and_pulls_the_others() -> None:
    spread = features(4, 3).float()
    together = spread.clone()
    together[1] = together[0]
    for student, teacher in (
        (together, spread),
        (spread, together),
        (torch.ones(4, 3), spread),
        (spread, torch.ones(4, 3)),
    ):
        own = student.clone().requires_grad_()
        loss = rkd_loss(own, teacher)
        loss.backward()
        assert loss.isfinite() and loss > 0
        # A division by the length that is not there would give 1e6 and more.
        assert own.grad.abs().max() < 1e3
        if len(student.unique(dim=0)) > 1:
            assert own.grad.abs().max() > 0


@pytest.mark.parametrize("name", PURE)
def test_features_of_nothing_have_finite_gradients(name: str) -> None:
    own, other = SHAPES[name]
    student = torch.zeros(own, requires_grad=True)
    loss = PURE[name](student, torch.rand(other))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("name", PURE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_before_the_formula(name: str, dtype: torch.dtype) -> None:
    # Squares of 300 are beyond float16's 65504.
    student, teacher = (300 * of.to(dtype) for of in pair(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = PURE[name](student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), PURE[name](student.double(), teacher.double()), rtol=1e-4, atol=1e-8)


def test_at_is_the_sum_over_paired_stages(pyramid, make_outputs) -> None:
    student, teacher = pyramid(), pyramid(channels=(5, 7, 9))
    (built,) = build_losses(parse_methods("at"), student, teacher)
    loss = built.module
    assert (built.weight, built.warmup_epochs, loss.p) == (1000.0, 0.0, 2.0)
    assert [(of.student, of.teacher) for of in loss.pairs] == [(f"stages.{i}",) * 2 for i in range(3)]
    assert list(loss.parameters()) == []
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    by_hand = [slow_at(own.maps[of.student], other.maps[of.teacher]) for of in loss.pairs]
    assert loss(own, other).item() == pytest.approx(sum(by_hand), rel=1e-10)
    loss(own, other).backward()
    assert all(own.maps[of.student].grad.abs().max() > 0 for of in loss.pairs)


def test_at_of_a_transformer_is_the_tokens_squared_lengths_on_four_blocks(plain, make_outputs) -> None:
    student, teacher = plain(grid=8), plain(depth=24, width=6)
    loss = AttentionTransfer(student, teacher)
    assert [(of.student, of.teacher) for of in loss.pairs] == [
        (f"blocks.{i}", f"blocks.{j}") for i, j in ((2, 5), (5, 11), (8, 17), (11, 23))
    ]
    assert loss.notes[0] == "at: student blocks.2 (8x8) is resized to teacher blocks.5 (4x4)."
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    total = 0.0
    for of in loss.pairs:
        cells = torch.nn.functional.avg_pool2d(own.maps[of.student], 2), other.maps[of.teacher]
        unit = [torch.nn.functional.normalize(c.flatten(2).norm(dim=1) ** 2, dim=1) for c in cells]
        total += (unit[0] - unit[1]).square().mean().item()
    assert loss(own, other).item() == pytest.approx(total, rel=1e-10)


def test_sp_compares_the_last_maps_whatever_their_sizes(plain, pyramid, make_outputs) -> None:
    student, teacher = pyramid(), plain(depth=6)
    (built,) = build_losses(parse_methods("sp"), student, teacher)
    loss = built.module
    assert (built.weight, built.warmup_epochs, loss.notes) == (3000.0, 0.0, ())
    assert [(of.student, of.teacher) for of in loss.pairs] == [("stages.2", "blocks.5")]
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    assert loss(own, other).item() == pytest.approx(slow_sp(own.maps["stages.2"], other.maps["blocks.5"]), rel=1e-10)
    two = SP(student, teacher, pairs=[("stages.0", "blocks.1"), ("stages.2", "blocks.5")])
    own, other = make_outputs(student, two.student_request), make_outputs(teacher, two.teacher_request, seed=1)
    by_hand = [slow_sp(own.maps[of.student], other.maps[of.teacher]) for of in two.pairs]
    assert two(own, other).item() == pytest.approx(sum(by_hand), rel=1e-10)


def test_rkd_compares_pooled_vectors(plain, pyramid, make_outputs) -> None:
    student, teacher = pyramid(), plain(depth=6)
    (built,) = build_losses(parse_methods("rkd(angle=10)"), student, teacher)
    loss = built.module
    assert (built.weight, loss.distance, loss.angle) == (1.0, 25.0, 10.0)
    assert loss.student_request.levels == () and loss.pairs == ()
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    assert loss(own, other).item() == pytest.approx(slow_rkd(own.pooled, other.pooled, 25.0, 10.0), rel=1e-10)
    loss(own, other).backward()
    assert own.pooled.grad.abs().max() > 0 and other.pooled.grad is None


@pytest.mark.parametrize(
    "text",
    [
        "dkd(weight=0.5)+sp",
        "kd+at+sp+rkd",
        "standardised(of='dkd(beta=2)')+rkd(distance=0)",
        "function_matching+dist+at",
    ],
)
@pytest.mark.parametrize("crossing", ["cnn", "vit", "cnn to vit", "vit to cnn"])
def test_joined_methods_are_built_and_teach_the_student_alone(
    text: str, crossing: str, plain, pyramid, make_outputs
) -> None:
    cnn, vit = pyramid(), plain(depth=4)
    student, teacher = {"cnn": (cnn, cnn), "vit": (vit, vit), "cnn to vit": (vit, cnn), "vit to cnn": (cnn, vit)}[
        crossing
    ]
    for built in build_losses(parse_methods(text), student, teacher):
        loss = built.module
        own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
        value = loss(own, other, torch.tensor([0, 4, 2]))
        value.backward()
        assert value.isfinite() and value > 0
        given = [t for t in (own.logits, own.pooled, *own.maps.values()) if t is not None]
        assert sum(t.grad.abs().sum() for t in given if t.grad is not None) > 0
        told = [t for t in (other.logits, other.pooled, *other.maps.values()) if t is not None]
        assert all(t.grad is None for t in told)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("at(p=0.5)", "at: p is 0.5; it must be at least 1"),
        ("at(num_levels=0)", "at: num_levels is 0"),
        ("at(pairs=[])", "pairs is an empty list"),
        ("sp(pairs=[('blocks.99', 'blocks.0')])", "no level 'blocks.99'"),
        ("rkd(distance=-1)", "rkd: distance is -1"),
        ("rkd(angle=-1)", "rkd: angle is -1"),
        ("rkd(distance=0, angle=0)", "rkd: distance and angle are both 0"),
    ],
)
def test_wrong_options_are_named(text: str, message: str, plain) -> None:
    with pytest.raises(UserError, match=message):
        build_losses(parse_methods(text), plain(), plain())


@pytest.mark.parametrize("method", [AttentionTransfer, SP, RKD])
def test_detectors_are_refused(method: type, detector) -> None:
    with pytest.raises(UserError, match="compares what classifiers say"):
        method(detector(), detector())
