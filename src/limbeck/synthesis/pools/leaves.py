"""Dead leaves: shapes that fall on each other until they cover everything.

The model is Matheron's (1968); with radii after a power law its pictures have the statistics of edges and scales of
photographs (Lee, Mumford and Huang, IJCV 2001), and networks learn something from them (Baradad et al., NeurIPS 2021,
arXiv:2106.05963).
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

BUNCH = 64
"""Leaves that fall before anybody looks whether all is covered."""


def power_law(uniform: NDArray[np.float64], low: float, high: float, exponent: float) -> NDArray[np.float64]:
    """Numbers between `low` and `high` with a density in proportion to x^-exponent, from uniform ones in [0, 1)."""
    if exponent == 1:
        drawn: NDArray[np.float64] = low * (high / low) ** uniform
        return drawn
    power = 1 - exponent
    drawn = (low**power + uniform * (high**power - low**power)) ** (1 / power)
    return drawn


def fallen_leaves(
    random: np.random.Generator, size: tuple[int, int], radius: tuple[float, float], exponent: float
) -> NDArray[np.int32]:
    """(H, W): which leaf lies on top at each pixel, counted from 1; leaves fall until they cover everything."""
    height, width = size
    middle = np.array([width, height]) / 2
    canvas = Image.new("I", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    leaf = 0
    while not np.asarray(canvas).all():
        radii = power_law(random.random(BUNCH), *radius, exponent) * min(size)
        # Leaves also fall beside the picture, so that its edges look like its middle.
        centres = middle + random.uniform(-1, 1, (BUNCH, 2)) * (middle + radii[:, None])
        corners, turns = random.choice([0, 3, 4], BUNCH), random.uniform(0, 2 * math.pi, BUNCH)
        discs = np.hstack([centres - radii[:, None], centres + radii[:, None]]).tolist()
        outlines = {kind: _outlines(kind, radii, centres, turns) for kind in (3, 4)}
        for place, kind in enumerate(corners.tolist()):
            leaf += 1
            if kind == 0:
                draw.ellipse(discs[place], fill=leaf)
            else:
                draw.polygon(outlines[kind][place], fill=leaf)
    return np.asarray(canvas)


def _outlines(
    corners: int, radii: NDArray[np.float64], centres: NDArray[np.float64], turns: NDArray[np.float64]
) -> list[list[float]]:
    """x, y, x, y, ... of the corners of one regular polygon for each radius, which is half a square's side."""
    around = turns[:, None] + 2 * math.pi / corners * np.arange(corners)
    reach = radii * (math.sqrt(2) if corners == 4 else 1)
    points = centres[:, None] + reach[:, None, None] * np.stack([np.cos(around), np.sin(around)], 2)
    flat: list[list[float]] = points.reshape(len(radii), -1).tolist()
    return flat
