"""spectralkd: the transform by hand, what Parseval says of it, pooled channels, and the published pairs."""

import cmath
import math

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import SpectralKD, build_losses, parse_methods, spectralkd_loss
from limbeck.losses.spectralkd import pool_channels


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_spectrum(cells: Tensor) -> list[list[complex]]:
    """The orthonormal transform of one (H, W) map, over the ⌊W/2⌋ + 1 first frequencies of the second axis."""
    height, width = cells.shape
    return [
        [
            sum(
                cells[y, x].item() * cmath.exp(-2j * math.pi * (v * y / height + u * x / width))
                for y in range(height)
                for x in range(width)
            )
            / math.sqrt(height * width)
            for u in range(width // 2 + 1)
        ]
        for v in range(height)
    ]


def slow(own: Tensor, other: Tensor) -> float:
    """Two maps of equal width, transformed one by one; mean over everything, real and imaginary parts apart."""
    squares = []
    for mine, theirs in zip(own.flatten(0, 1), other.flatten(0, 1), strict=True):
        for row, other_row in zip(slow_spectrum(mine), slow_spectrum(theirs), strict=True):
            for a, b in zip(row, other_row, strict=True):
                squares += [(a.real - b.real) ** 2, (a.imag - b.imag) ** 2]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("grid", [(3, 4), (4, 3), (1, 1), (2, 5)])
def test_it_is_the_mean_squared_difference_of_spectra(grid: tuple[int, int]) -> None:
    own, other = random(2, 3, *grid), random(2, 3, *grid, seed=1)
    assert float(spectralkd_loss(own, other)) == pytest.approx(slow(own, other), rel=1e-10)


def test_a_wider_teachers_channels_are_averaged_as_adaptive_pooling_divides_them() -> None:
    own, other = random(2, 2, 3, 4), random(2, 5, 3, 4, seed=1)
    # Channel i of 2 stands for numbers floor(i * 5/2) to ceil((i + 1) * 5/2): 0 to 2, and 2 to 4.
    by_hand = torch.stack([other[:, 0:3].mean(1), other[:, 2:5].mean(1)], dim=1)
    torch.testing.assert_close(pool_channels(other, 2), by_hand)
    torch.testing.assert_close(spectralkd_loss(own, other), spectralkd_loss(own, by_hand))
    assert float(spectralkd_loss(by_hand, other)) < 1e-28
    three_d = torch.nn.functional.adaptive_avg_pool3d(other, (2, None, None))
    torch.testing.assert_close(pool_channels(other, 2), three_d)
    assert pool_channels(own, 2) is own


def test_a_wider_students_channels_are_averaged_instead() -> None:
    wide, narrow = random(2, 6, 3, 4), random(2, 2, 3, 4, seed=1)
    torch.testing.assert_close(spectralkd_loss(wide, narrow), spectralkd_loss(narrow, wide))


def test_parseval() -> None:
    """Counting the middle frequencies twice, as a whole transform has them, gives the squared error of the maps."""
    own, other = random(2, 3, 4, 6), random(2, 3, 4, 6, seed=1)
    spectrum = torch.view_as_real(torch.fft.rfft2(own - other, norm="ortho")).square()
    twice = torch.tensor([1.0, 2, 2, 1], dtype=torch.float64).view(4, 1)
    torch.testing.assert_close((spectrum * twice).sum(), (own - other).square().sum())
    torch.testing.assert_close(spectralkd_loss(own, other), spectrum.sum() / (2 * 2 * 3 * 4 * 4))


def test_known_vectors() -> None:
    """A constant difference c has one frequency, of height c·√(H·W): its square over 2·H·(W/2 + 1) numbers."""
    other = random(1, 1, 4, 4)
    loss = spectralkd_loss(other + 3, other)
    torch.testing.assert_close(loss, torch.tensor(9 * 16 / (2 * 4 * 3), dtype=torch.float64))


def test_shifting_both_maps_around_changes_nothing() -> None:
    own, other = random(2, 3, 4, 6), random(2, 3, 4, 6, seed=1)
    moved = [of.roll((1, 2), dims=(2, 3)) for of in (own, other)]
    torch.testing.assert_close(spectralkd_loss(*moved), spectralkd_loss(own, other))


def test_the_gradient_is_the_students_alone_and_right() -> None:
    own, other = random(1, 4, 3, 4).requires_grad_(), random(1, 2, 3, 4, seed=1).requires_grad_()
    spectralkd_loss(own, other).backward()
    assert other.grad is None and own.grad is not None and own.grad.any()
    assert torch.autograd.gradcheck(lambda s: spectralkd_loss(s, other.detach()), own)


def test_half_precision_is_promoted() -> None:
    own, other = random(2, 3, 5, 7), random(2, 4, 5, 7, seed=1)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", torch.bfloat16):
            loss = spectralkd_loss(own.to(dtype), other.to(dtype))
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, spectralkd_loss(own, other).float(), rtol=1e-2, atol=0)


def test_blocks_are_paired_as_published_for_deit_and_cait(plain, pyramid) -> None:
    (built,) = build_losses(parse_methods("spectralkd"), plain(depth=12), plain(depth=24))
    assert [pair.student for pair in built.module.pairs] == [f"blocks.{i}" for i in (0, 1, 6, 7, 8, 9, 10, 11)]
    assert [pair.teacher for pair in built.module.pairs] == [f"blocks.{i}" for i in (0, 1, 18, 19, 20, 21, 22, 23)]
    assert built.weight == 0.2
    assert built.module.matches_blocks
    assert list(built.module.parameters()) == []
    (stages,) = build_losses(parse_methods("spectralkd"), pyramid(), pyramid())
    assert [(pair.student, pair.teacher) for pair in stages.module.pairs] == [(f"stages.{i}",) * 2 for i in range(3)]
    assert stages.weight == 0.05
    mixed = SpectralKD(plain(), pyramid())
    assert [(pair.student, pair.teacher) for pair in mixed.pairs] == [
        ("blocks.3", "stages.0"),
        ("blocks.7", "stages.1"),
        ("blocks.11", "stages.2"),
    ]


def test_the_method_is_the_mean_over_pairs_on_the_teachers_grid(plain, make_outputs) -> None:
    student, teacher = plain(depth=3, width=6, grid=8), plain(depth=3, width=4, grid=4)
    loss = SpectralKD(student, teacher, first=1, last=1)
    assert [note for note in loss.notes if "blocks.2" in note] == [
        "spectralkd: student blocks.2 (8x8) is resized to teacher blocks.2 (4x4).",
        "spectralkd: student blocks.2 is wider (6 channels) than teacher blocks.2 (4); its channels are averaged to that "
        "number.",
    ]
    own, other = make_outputs(student, loss.student_request), make_outputs(teacher, loss.teacher_request, seed=1)
    terms = [
        spectralkd_loss(torch.nn.functional.avg_pool2d(own.maps[name], 2), other.maps[name])
        for name in ("blocks.0", "blocks.2")
    ]
    for target in (None, torch.tensor([0, 1, 2]), torch.rand(3, 5)):
        torch.testing.assert_close(loss(own, other, target), (terms[0] + terms[1]) / 2)


def test_what_it_cannot_do_is_refused(plain, detector) -> None:
    with pytest.raises(UserError, match="spectralkd compares what classifiers say"):
        SpectralKD(detector(), detector())
    with pytest.raises(UserError, match="first=0 and last=0 choose no block"):
        SpectralKD(plain(), plain(), first=0, last=0)
    with pytest.raises(UserError, match=r"no level 'blocks\.99'"):
        SpectralKD(plain(), plain(), pairs=[("blocks.99", "blocks.0")])
