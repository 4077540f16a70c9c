"""Random iterated function systems and their attractors, for pictures of them.

After FractalDB (Kataoka et al., ACCV 2020, arXiv:2101.08515): two to eight affine maps, chosen in proportion to the absolute
value of their determinants. The maps' singular values are drawn as by Anderson and Farrell (WACV 2022, arXiv:2110.03091),
so that every map contracts and the attractor is neither dust nor a blot, and nothing has to be drawn again.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BURN_IN, STEPS = 16, 48
"""Steps of every point before it is counted, and counted ones."""


def singular_values(random: np.random.Generator, maps: int) -> NDArray[np.float64]:
    """(maps, 2) with 1 >= s_1 >= s_2 >= 0 and sum(s_1 + 2 s_2) = alpha, alpha uniform in [(5 + n) / 2, (6 + n) / 2].

    Pair after pair, each between the bounds that leave the others a solution.
    """
    left = random.uniform((5 + maps) / 2, (6 + maps) / 2)
    pairs = np.empty((maps, 2))
    for place in range(maps):
        others = 3.0 * (maps - 1 - place)
        if others == 0:
            second = random.uniform(max(0.0, (left - 1) / 2), left / 3)
            first = left - 2 * second
        else:
            first = random.uniform(max(0.0, (left - others) / 3), min(1.0, left))
            second = random.uniform(max(0.0, (left - others - first) / 2), min(first, (left - first) / 2))
        pairs[place] = first, second
        left -= first + 2 * second
    return pairs


def random_system(random: np.random.Generator, maps: int) -> tuple[Floats, Floats, Floats]:
    """A random iterated function system.

    Returns:
        (maps, 2, 2) matrices, (maps, 2) shifts between -1 and 1, and (maps,) the chance of each map, in proportion to the
        absolute value of its determinant.
    """
    values = singular_values(random, maps)
    outer, inner = (_orthogonal(random, maps) for _ in range(2))
    matrices = (outer * values[:, None, :]) @ inner
    shifts = random.uniform(-1, 1, (maps, 2))
    areas = values.prod(1) + 1e-6
    return matrices.astype(np.float32), shifts.astype(np.float32), (areas / areas.sum()).astype(np.float32)


def _orthogonal(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(count, 2, 2) random rotations, half of them mirrored."""
    angles, mirrored = random.uniform(-math.pi, math.pi, count), np.where(random.random(count) < 0.5, -1.0, 1.0)
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cosine, -sine * mirrored], 1), np.stack([sine, cosine * mirrored], 1)], 1)


def chaos_game(
    matrices: Floats, shifts: Floats, chances: Floats, colours: Floats, uniforms: Floats
) -> tuple[Floats, Floats]:
    """Points of several systems' attractors at once.

    Every point goes through maps chosen at random; its colour is the mean of its last colour and the map's.

    Args:
        matrices: (B, M, 2, 2).
        shifts: (B, M, 2).
        chances: (B, M), 0 for maps that a system does not have.
        colours: (B, M, 3), of the maps.
        uniforms: (BURN_IN + STEPS, B, P) random numbers in [0, 1), which choose the maps.

    Returns:
        (2, STEPS, B, P) x and y, and (3, STEPS, B, P) colours.
    """
    batch, points = uniforms.shape[1:]
    most = chances.shape[1]
    limits = chances.cumsum(1, dtype=np.float64)
    limits = (limits / limits[:, -1:]).astype(np.float32)
    xx, xy, yx, yy = matrices.reshape(-1, 4).T.copy()
    to_x, to_y = shifts.reshape(-1, 2).T.copy()
    inks = colours.reshape(-1, 3).T.copy()
    first = np.arange(batch, dtype=np.intp)[:, None] * most
    x, y = np.zeros((2, batch, points), np.float32)
    tint = np.full((3, batch, points), 0.5, np.float32)
    places, tints = np.empty((2, STEPS, batch, points), np.float32), np.empty((3, STEPS, batch, points), np.float32)
    for step, uniform in enumerate(uniforms):
        chosen = np.repeat(first, points, 1)
        for place in range(most - 1):
            chosen += uniform >= limits[:, place, None]
        x, y = xx[chosen] * x + xy[chosen] * y + to_x[chosen], yx[chosen] * x + yy[chosen] * y + to_y[chosen]
        tint += inks[:, chosen]
        tint *= 0.5
        if step >= BURN_IN:
            places[0, step - BURN_IN], places[1, step - BURN_IN], tints[:, step - BURN_IN] = x, y, tint
    return places, tints


def density_and_colour(places: Floats, tints: Floats, size: tuple[int, int], zoom: Floats) -> tuple[Floats, Floats]:
    """Count points in pixels: the bounding box of each attractor fills the canvas, times `zoom`, about its centre.

    Args:
        places: (2, T, B, P) x and y.
        tints: (3, T, B, P).
        size: (height, width).
        zoom: (2, B) factors for x and y.

    Returns:
        (B, H, W) points per pixel and (3, B, H, W) their mean colour, 0 where there are none.
    """
    batch = places.shape[2]
    flat = np.arange(batch)[:, None]
    inside = np.ones(places.shape[1:], bool)
    for axis, length in ((1, size[0]), (0, size[1])):
        values = places[axis]
        # Along the points first, which lie next to each other.
        low, high = values.min(2).min(0), values.max(2).max(0)
        scale = zoom[axis] * length / np.maximum(high - low, 1e-6)
        pixel = np.floor((values - ((low + high) / 2)[:, None]) * scale[:, None] + length / 2).astype(np.int32)
        inside &= (pixel >= 0) & (pixel < length)
        flat = flat * length + pixel
    flat = flat[inside]
    total = batch * size[0] * size[1]
    density = np.bincount(flat, minlength=total)
    sums = np.stack([np.bincount(flat, weights=tint[inside], minlength=total) for tint in tints])
    mean = sums / np.maximum(density, 1)
    shape = (batch, *size)
    return density.reshape(shape).astype(np.float32), mean.reshape(3, *shape).astype(np.float32)
