"""The controls: noise with its moments, fractals that are attractors, leaves that cover everything."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from limbeck.errors import UserError
from limbeck.synthesis.base import Setting
from limbeck.synthesis.pools.fractals import (
    BURN_IN,
    STEPS,
    chaos_game,
    density_and_colour,
    random_system,
    singular_values,
)
from limbeck.synthesis.pools.leaves import fallen_leaves, power_law
from limbeck.synthesis.pools.numbered import Numbered
from limbeck.synthesis.pools.procedural import DeadLeaves, Fractals, Noise

Way = Callable[[Setting], Numbered]


def made(way: Numbered, count: int, done: int = 0) -> torch.Tensor:
    return torch.cat([batch.images for batch in way.make(count, done)])


@pytest.mark.parametrize("way", [Noise, Fractals, DeadLeaves])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (64, 64), (24, 40)])
def test_pictures_have_the_size_and_depend_on_their_number_alone(
    setting: Setting, way: Way, size: tuple[int, int]
) -> None:
    setting = replace(setting, size=size)
    images = made(way(setting), 10)
    assert images.shape == (10, 3, *size) and images.is_contiguous()
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
    assert torch.equal(made(way(setting), 10, done=4), images[4:])
    torch.testing.assert_close(made(way(replace(setting, batch_size=3)), 10), images, atol=1e-6, rtol=0)
    assert not torch.equal(made(way(replace(setting, seed=4)), 10), images)
    assert len({round(image.mean().item(), 6) for image in images}) == 10
    assert any("control" in note for note in way(setting).notes)


def test_noise_has_the_moments_of_what_it_is_called(setting: Setting) -> None:
    setting = replace(setting, size=(64, 64), batch_size=16)
    for distribution in ("normal", "uniform"):
        narrow = made(Noise(setting, distribution=distribution, mean=0.4, std=0.1), 16)
        assert narrow.mean().item() == pytest.approx(0.4, abs=2e-3)
        assert narrow.std().item() == pytest.approx(0.1, abs=2e-3)
        # Neighbours and channels have nothing to do with each other.
        centred = (narrow - 0.4) / 0.1
        assert abs((centred[..., 1:] * centred[..., :-1]).mean().item()) < 0.02
        assert abs((centred[:, 0] * centred[:, 1]).mean().item()) < 0.02
    # Clipped at two standard deviations: the second moment of a normal number that is set to its bounds outside.
    outside = 2 * stats.norm.sf(2)
    inside = (1 - outside) - 4 * stats.norm.pdf(2)
    expected = 0.25 * math.sqrt(inside + 4 * outside)
    assert made(Noise(setting), 16).std().item() == pytest.approx(expected, abs=2e-3)
    with pytest.raises(UserError, match="std is 0"):
        Noise(setting, std=0)


def test_singular_values_contract_and_sum_to_alpha() -> None:
    random = np.random.default_rng(0)
    for maps in range(2, 9):
        for _ in range(50):
            values = singular_values(random, maps)
            assert (values >= 0).all() and (values <= 1 + 1e-9).all() and (values[:, 0] >= values[:, 1]).all()
            alpha = values.sum() + values[:, 1].sum()
            assert (5 + maps) / 2 <= alpha <= (6 + maps) / 2
            matrices, shifts, chances = random_system(random, maps)
            np.testing.assert_allclose(np.linalg.svd(matrices)[1].max(), np.linalg.norm(matrices, 2, (1, 2)).max())
            np.testing.assert_allclose(chances / chances.max(), _areas(matrices), atol=1e-3)
            assert np.abs(shifts).max() <= 1


def _areas(matrices: np.ndarray) -> np.ndarray:
    areas = np.abs(np.linalg.det(matrices))
    return areas / areas.max()


def test_the_chaos_game_of_three_halvings_is_sierpinskis_triangle() -> None:
    matrices = np.tile(np.eye(2, dtype=np.float32) / 2, (1, 4, 1, 1))
    shifts = np.array([[[0, 0], [0.5, 0], [0, 0.5], [9, 9]]], np.float32)
    chances = np.array([[1, 1, 1, 0]], np.float32) / 3
    colours = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]][None]
    uniforms = np.random.default_rng(0).random((BURN_IN + STEPS, 1, 2000), np.float32)
    places, tints = chaos_game(matrices, shifts, chances, colours, uniforms)
    x, y = places[:, :, 0]
    # The bits of x and y are never both one, and all three thirds are hit equally often.
    bits_x, bits_y = (np.floor(value * 256).astype(int) for value in (x, y))
    assert ((bits_x & bits_y) == 0).mean() > 0.999
    assert abs((x >= 0.5).mean() - 1 / 3) < 0.01
    # Two thirds of the canvas's quarters hold points, and their colours are mostly their own corner's.
    density, ink = density_and_colour(places, tints, (64, 64), np.ones((2, 1), np.float32))
    assert density.shape == (1, 64, 64) and ink.shape == (3, 1, 64, 64)
    assert density[0, 40:, 40:].sum() == 0
    assert density.sum() >= 0.99 * x.size
    assert abs((density > 0).mean() - (3 / 4) ** 6) < 0.08
    assert ink[1, 0, 1, 60] > 0.9 and ink[2, 0, 60, 1] > 0.9 and ink[0, 0, 2, 1] > 0.9
    np.testing.assert_allclose(ink.sum(0)[density > 0], 1, atol=0.01)


def test_fractals_are_neither_empty_nor_everywhere(setting: Setting) -> None:
    random = np.random.default_rng(1)
    filled = []
    for _ in range(60):
        matrices, shifts, chances = (part[None] for part in random_system(random, int(random.integers(2, 9))))
        colours = np.ones((1, matrices.shape[1], 3), np.float32)
        uniforms = random.random((BURN_IN + STEPS, 1, 200), np.float32)
        places, tints = chaos_game(matrices, shifts, chances, colours, uniforms)
        density, _ = density_and_colour(places, tints, (32, 32), np.ones((2, 1), np.float32))
        filled.append((density > 0).mean())
    assert np.mean(np.array(filled) > 0.05) > 0.95
    assert 0.15 < np.median(filled) < 0.7
    for wrong in ({"maps": (1, 3)}, {"maps": (5, 3)}, {"points": 0.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Fractals(setting, **wrong)


def test_radii_follow_their_power_law() -> None:
    uniform = np.linspace(0, 1, 2001)[:-1]
    for exponent in (0.0, 1.0, 3.0):
        drawn = power_law(uniform, 0.1, 0.8, exponent)
        grid = np.linspace(0.1, 0.8, 100_001)
        mass = np.cumsum(grid**-exponent)
        np.testing.assert_allclose(np.interp(drawn, grid, mass / mass[-1]), uniform, atol=1e-3)


def test_leaves_cover_the_canvas_and_the_latest_lies_on_top(setting: Setting) -> None:
    leaves = fallen_leaves(np.random.default_rng(0), (48, 80), (0.1, 0.5), 3.0)
    assert leaves.shape == (48, 80) and leaves.min() >= 1
    assert len(np.unique(leaves)) > 20
    # The last bunch that fell is seen, far more of it than of the first.
    last = leaves.max()
    assert (leaves > last - 64).sum() > (leaves <= 64).sum()
    # Regions of one colour with sharp edges: nearly all neighbours are equal.
    image = made(DeadLeaves(replace(setting, size=(64, 64))), 1)
    assert ((image[..., 1:] - image[..., :-1]).abs().amax(1) < 1e-6).float().mean() > 0.6
    with pytest.raises(UserError, match="radius"):
        DeadLeaves(setting, radius=(0.0, 0.5))
