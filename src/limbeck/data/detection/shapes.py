"""Drawn scenes of five shapes, made on the spot: no download, exact boxes and masks, the same on every machine.

An image shows one to six circles, squares, triangles, stars and crosses of random size, colour and turn on a background
of two colours with bars, squares or a slow change between them, and a little noise. A later shape may cover earlier
ones. As in COCO, a mask is what can be seen of an object, and its box is the smallest around the mask; at least
`VISIBLE` of each object can be seen. A pixel belongs to a shape when the shape covers at least half of its nine
sample points, and colours blend by the share that is covered.

Every scene follows from (seed, split, number) alone, so that more scenes never change the others.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limbeck.data.detection.base import Objects, SceneSource
from limbeck.data.detection.masks import segment_box
from limbeck.data.detection.opened import Opened
from limbeck.errors import UserError

CLASS_NAMES = ("circle", "square", "triangle", "star", "cross")
VISIBLE = 0.5

_SPLITS = ("train", "val")
_SAMPLES = 3  # along each side of a pixel
_ATTEMPTS = 20

# Corners around the centre, at distances in units of the radius, in order; circles have none.
_CORNERS = {
    "square": [(1.0, (2 * k + 1) / 8) for k in range(4)],
    "triangle": [(1.0, k / 3) for k in range(3)],
    "star": [(1.0 if k % 2 == 0 else 0.45, k / 10) for k in range(10)],
    "cross": [
        (radius, side / 4 + sign * turn)
        for side in range(4)
        for radius, turn, sign in ((1.0, 0.0545, -1), (1.0, 0.0545, 1), (0.475, 0.125, 1))
    ],
}


class ShapesSource(SceneSource):
    """The scenes of one split.

    Args:
        split: "train" or "val".
        count: scenes.
        size: of each side, in pixels.
        seed: of all scenes.
    """

    class_names = CLASS_NAMES
    has_masks = True

    def __init__(self, split: str, count: int, size: int, seed: int) -> None:
        self.split, self.count, self.side, self.seed = split, count, size, seed

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB."""
        return Image.fromarray(paint(*self._scene(index)))

    def objects(self, index: int) -> Objects:
        """The shapes in the order in which they were drawn, the lowest first."""
        placed, masks = lay_out(*self._scene(index))
        boxes = np.array([segment_box(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
        labels = np.array([shape.label for shape in placed], dtype=np.int64)
        area = masks.sum(axis=(1, 2)).astype(np.float32)
        return Objects(boxes, labels, np.zeros(len(labels), dtype=bool), area, tuple(mask.copy() for mask in masks))

    def image_id(self, index: int) -> int:
        """The number of the scene."""
        return index

    def size(self, index: int) -> tuple[int, int]:
        """(height, width)."""
        return self.side, self.side

    def describe(self, index: int) -> str:
        """The split and number."""
        return f"shapes {self.split}[{index}]"

    def _scene(self, index: int) -> tuple[int, int, int, int]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.seed, _SPLITS.index(self.split), index, self.side


def open_shapes(*, train: int = 400, val: int = 100, size: int = 128, seed: int = 0) -> Opened:
    """The drawn scenes.

    Args:
        train: scenes to learn from.
        val: scenes to measure on.
        size: of each side, in pixels, 32 to 1024.
        seed: of all scenes.

    Raises:
        UserError: an option is out of its range.
    """
    rules = {
        "train": (train, 1, 10**6),
        "val": (val, 1, 10**6),
        "size": (size, 32, 1024),
        "seed": (seed, 0, 2**32 - 1),
    }
    for name, (value, low, high) in rules.items():
        if type(value) is not int or not low <= value <= high:
            raise UserError(f"shapes: {name} is {value!r}; it must be a whole number from {low} to {high}.")
    record: dict[str, Any] = {"kind": "shapes", "split": "given", "size": size, "shapes_seed": seed}
    return Opened(ShapesSource("train", train, size, seed), ShapesSource("val", val, size, seed), record)


@dataclass(frozen=True)
class Placed:
    """A shape at its place.

    Attributes:
        label: its class.
        window: rows and columns of the image.
        cover: (rows, columns of the window), the share of each pixel that the shape covers.
    """

    label: int
    window: tuple[slice, slice]
    cover: NDArray[np.float64]


@lru_cache(maxsize=16)
def lay_out(seed: int, split: int, number: int, size: int) -> tuple[list[Placed], NDArray[np.bool_]]:
    """Place the shapes of one scene.

    Args:
        seed: of all scenes.
        split: 0 or 1.
        number: of the scene.
        size: of each side, in pixels.

    Returns:
        The N shapes, the lowest first, and their visible masks (N, size, size). They are shared: do not change them.
    """
    random = np.random.RandomState([seed, split, number, 0])
    placed: list[Placed] = []
    masks = np.zeros((0, size, size), dtype=bool)
    areas: list[int] = []
    for _ in range(random.randint(1, 7)):
        label, radius, turn = random.randint(len(CLASS_NAMES)), size * random.uniform(0.07, 0.22), random.uniform()
        for _attempt in range(_ATTEMPTS):
            centre = random.uniform(radius * 0.8, size - radius * 0.8, size=2)
            shape = Placed(int(label), *_cover(CLASS_NAMES[label], centre, radius, turn, size))
            whole = np.zeros((size, size), dtype=bool)
            whole[shape.window] = shape.cover >= 0.5
            left = masks & ~whole
            if all(left.sum(axis=(1, 2)) >= VISIBLE * np.array(areas)):
                masks = np.concatenate([left, whole[None]])
                areas.append(int(whole.sum()))
                placed.append(shape)
                break
    return placed, masks


def paint(seed: int, split: int, number: int, size: int) -> NDArray[np.uint8]:
    """Paint one scene, (size, size, 3); arguments as in `lay_out`."""
    random = np.random.RandomState([seed, split, number, 1])
    image = _background(random, size)
    ramp = _ramp(random, size)[..., None]
    mean = image.mean(axis=(0, 1))
    colours: list[NDArray[np.float64]] = []
    for shape in lay_out(seed, split, number, size)[0]:
        under = image[shape.window]
        colours.append(_colour(random, mean, colours))
        shaded = colours[-1] + 36 * (ramp[shape.window] - 0.5)  # a little lighter to one side
        image[shape.window] = under + shape.cover[..., None] * (shaded - under)
    image += random.normal(0, 4, size=image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _background(random: np.random.RandomState, size: int) -> NDArray[np.float64]:
    """(size, size, 3) of two quiet colours."""
    base = random.uniform(40, 215)
    first, second = base + random.uniform(-25, 25, size=(2, 3))
    across = _ramp(random, size)
    kind, period = random.randint(4), random.randint(2, 7)
    if kind == 1:
        across = (np.floor(across * 2 * period) % 2).astype(np.float64)
    elif kind == 2:
        cells = np.floor(np.arange(size) * period / size)
        across = (cells[:, None] + cells[None, :]) % 2
    elif kind == 3:
        across = 0.5 + 0.5 * np.sin(2 * np.pi * period * across)
    blended: NDArray[np.float64] = first + across[..., None] * (second - first)
    return blended


def _ramp(random: np.random.RandomState, size: int) -> NDArray[np.float64]:
    """(size, size) from 0 to 1 in a random direction."""
    angle = random.uniform(0, 2 * np.pi)
    place = (np.arange(size) + 0.5) / size
    ramp = np.cos(angle) * place[None, :] + np.sin(angle) * place[:, None]
    scaled: NDArray[np.float64] = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    return scaled


def _colour(
    random: np.random.RandomState, background: NDArray[np.float64], others: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """A colour, not grey, well apart from the background's and from those of the other shapes."""
    colour: NDArray[np.float64] = random.uniform(15, 240, size=3)
    for _ in range(100):
        apart = all(np.abs(colour - other).max() > 50 for other in others)
        if apart and np.abs(colour - background).max() > 70 and np.ptp(colour) > 50:
            break
        colour = random.uniform(15, 240, size=3)
    return colour


def _cover(
    name: str, centre: NDArray[np.float64], radius: float, turn: float, size: int
) -> tuple[tuple[slice, slice], NDArray[np.float64]]:
    """A window around a shape, and the share of each of its pixels that the shape covers."""
    low = np.clip(np.floor(centre - radius - 1).astype(int), 0, size)
    high = np.clip(np.ceil(centre + radius + 1).astype(int), 0, size)
    x, y = ((np.arange(a * _SAMPLES, b * _SAMPLES) + 0.5) / _SAMPLES for a, b in zip(low, high, strict=True))
    dx, dy = x - centre[0], y - centre[1]
    if name == "circle":
        inside = dx[None, :] ** 2 + dy[:, None] ** 2 <= radius**2
    else:
        corners = [
            (radius * far * np.cos(2 * np.pi * (part + turn)), radius * far * np.sin(2 * np.pi * (part + turn)))
            for far, part in _CORNERS[name]
        ]
        inside = np.zeros((len(dy), len(dx)), dtype=bool)
        # Even-odd rule: count the edges that a ray to the right crosses.
        for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
            rows = np.flatnonzero((y1 > dy) != (y2 > dy))
            if len(rows):
                meets = x1 + (dy[rows] - y1) * ((x2 - x1) / (y2 - y1))
                inside[rows] ^= dx[None, :] < meets[:, None]
    parts = inside.reshape(high[1] - low[1], _SAMPLES, high[0] - low[0], _SAMPLES)
    return (slice(low[1], high[1]), slice(low[0], high[0])), parts.mean(axis=(1, 3))
