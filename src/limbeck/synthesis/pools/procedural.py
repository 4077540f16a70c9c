"""Pictures that no camera took and no teacher asked for: the controls against which everything else is to be measured."""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.errors import UserError
from limbeck.synthesis.base import Made, Setting
from limbeck.synthesis.pools.fractals import BURN_IN, STEPS, chaos_game, density_and_colour, random_system
from limbeck.synthesis.pools.leaves import fallen_leaves
from limbeck.synthesis.pools.numbered import Numbered

CONTROL = "A control: these pictures know nothing of the teacher; a method has to teach better than they do."


class Noise(Numbered):
    """Independent noise in every pixel and channel, clipped to [0, 1].

    Args:
        setting: as everywhere.
        distribution: "normal" or "uniform".
        mean: of the noise, before it is clipped.
        std: standard deviation before it is clipped, above 0.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        distribution: Literal["normal", "uniform"] = "normal",
        mean: float = 0.5,
        std: float = 0.25,
    ) -> None:
        super().__init__(setting)
        if std <= 0:
            raise UserError(f"noise: std is {std}; it must be above 0.")
        self.distribution, self.mean, self.std = distribution, mean, std
        self.note(CONTROL)

    def pictures(self, numbers: range) -> Made:
        """Noise of these numbers."""
        shape = (3, *self.setting.size)
        noise = np.stack([self._draw(self.random(number), shape) for number in numbers])
        return Made(torch.from_numpy(noise * np.float32(self.std) + np.float32(self.mean)).clamp_(0, 1))

    def _draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Mean 0, variance 1."""
        if self.distribution == "normal":
            return random.standard_normal(shape, np.float32)
        return np.float32(math.sqrt(12)) * (random.random(shape, np.float32) - np.float32(0.5))


class Fractals(Numbered):
    """Attractors of random iterated function systems, in colour, on a background that runs from one colour to another.

    Args:
        setting: as everywhere.
        maps: smallest and largest number of maps in a system.
        points: per pixel of the picture.
    """

    def __init__(self, setting: Setting, *, maps: tuple[int, int] = (2, 8), points: float = 8.0) -> None:
        super().__init__(setting)
        if not 2 <= maps[0] <= maps[1]:
            raise UserError(f"fractals: maps is {maps}; it must be two numbers, 2 <= smallest <= largest.")
        if points <= 0:
            raise UserError(f"fractals: points is {points}; it must be above 0.")
        self.maps = maps
        self.points = math.ceil(points * setting.size[0] * setting.size[1] / STEPS)
        self.note(CONTROL)

    def pictures(self, numbers: range) -> Made:
        """Fractals of these numbers, so many at a time as memory allows."""
        at_once = max(1, 4_000_000 // (self.points * STEPS))
        pieces = [numbers[start : start + at_once] for start in range(0, len(numbers), at_once)]
        return Made(torch.cat([self._piece(piece) for piece in pieces]))

    def _piece(self, numbers: range) -> torch.Tensor:
        most, batch = self.maps[1], len(numbers)
        matrices = np.zeros((batch, most, 2, 2), np.float32)
        shifts, chances = np.zeros((batch, most, 2), np.float32), np.zeros((batch, most), np.float32)
        colours = np.empty((batch, most, 3), np.float32)
        grounds = np.empty((batch, 2, 3), np.float32)
        tilts, zoom = np.empty(batch, np.float32), np.empty((2, batch), np.float32)
        uniforms = np.empty((BURN_IN + STEPS, batch, self.points), np.float32)
        for place, number in enumerate(numbers):
            random = self.random(number)
            count = int(random.integers(self.maps[0], self.maps[1], endpoint=True))
            matrices[place, :count], shifts[place, :count], chances[place, :count] = random_system(random, count)
            colours[place] = random.random((most, 3))
            grounds[place] = random.random((2, 3))
            tilts[place] = random.uniform(0, 2 * math.pi)
            zoom[:, place] = random.uniform(0.8, 1.2, 2)
            uniforms[:, place] = random.random((BURN_IN + STEPS, self.points), np.float32)
        places, tints = chaos_game(matrices, shifts, chances, colours, uniforms)
        density, ink = density_and_colour(places, tints, self.setting.size, zoom)
        # Half of the pixels that are hit at all shall be (nearly) opaque.
        usual = density.sum((1, 2)) / (density > 0).sum((1, 2)).astype(np.float32).clip(1)
        opacity = 1 - np.exp(-2 * density / np.maximum(usual, 1)[:, None, None])
        picture = opacity * ink + (1 - opacity) * self._ground(grounds, tilts)
        return torch.from_numpy(picture).transpose(0, 1).clamp(0, 1).contiguous()

    def _ground(self, colours: NDArray[np.float32], tilts: NDArray[np.float32]) -> NDArray[np.float32]:
        """(3, B, H, W): even gradients between two colours, in the direction of the tilt."""
        height, width = self.setting.size
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        tilt = tilts[:, None, None]
        share = 0.5 + (x * np.cos(tilt) + y * np.sin(tilt)) / np.float32(2 * math.sqrt(2))
        first, last = colours.transpose(1, 2, 0)[..., None, None]
        ground: NDArray[np.float32] = first * (1 - share) + last * share
        return ground


class DeadLeaves(Numbered):
    """Discs, squares and triangles of random colours that fall on each other until nothing of the ground is seen.

    Args:
        setting: as everywhere.
        radius: smallest and largest radius (half a side of squares), as a share of the picture's shorter side.
        exponent: the density of a radius r is in proportion to r^-exponent; 3 makes pictures look alike at all scales.
    """

    def __init__(self, setting: Setting, *, radius: tuple[float, float] = (0.06, 0.5), exponent: float = 3.0) -> None:
        super().__init__(setting)
        if not 0.01 <= radius[0] <= radius[1] <= 2:
            raise UserError(
                f"dead_leaves: radius is {radius}; it must be two shares, 0.01 <= smallest <= largest <= 2."
            )
        self.radius, self.exponent = radius, exponent
        self.note(CONTROL)

    def pictures(self, numbers: range) -> Made:
        """Leaves of these numbers."""
        return Made(torch.from_numpy(np.stack([self._picture(number) for number in numbers])).contiguous())

    def _picture(self, number: int) -> NDArray[np.float32]:
        random = self.random(number)
        height, width = self.setting.size
        # Drawn twice as large and averaged, since edges as PIL draws them are stairs.
        leaves = fallen_leaves(random, (2 * height, 2 * width), self.radius, self.exponent)
        colours = random.random((int(leaves.max()) + 1, 3), np.float32)
        picture: NDArray[np.float32] = colours[leaves].reshape(height, 2, width, 2, 3).mean((1, 3)).transpose(2, 0, 1)
        return picture
