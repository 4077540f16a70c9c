"""Crops of one large photograph: "The Augmented Image Prior" (Asano and Saeed, ICLR 2023, arXiv:2112.00725).

The published generator of patches: a random square of half the shorter side; in it a random resized crop; a rotation and
a shear; a flip; the centre; now and then other colours. There the crop is resized to sqrt(2) times the patch, which a
rotated patch never leaves, but a sheared one does, and shows black corners. Here each patch's own turn and shear decide how
large the resized crop must be (at least sqrt(2)), so that no patch shows anything but the photograph.
"""

import math
import os

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageStat
from torch import Tensor
from torchvision.transforms import v2

from limbeck.data.decode import EXTENSIONS, BadImageError, read_image
from limbeck.errors import UserError
from limbeck.synthesis.base import Made, Setting
from limbeck.synthesis.pools.numbered import Numbered

Box = tuple[float, float, float, float]

FLAT = 8.0
"""Standard deviation of the grey values, of 255, below which a photograph is called flat."""


class OneImage(Numbered):
    """Random patches of one photograph, or of several in turn.

    Defaults are the published ones.

    Args:
        setting: as everywhere.
        image: a file, or a list of files; the larger and the fuller of things, the better.
        first_crop: side of the first square, as a share of the photograph's shorter side.
        scale: smallest and largest share of that square's area in a patch.
        degrees: largest rotation to either side.
        shear: largest shear along the rows to either side, in degrees, below 90.
        flip: chance of a horizontal flip.
        jitter: largest relative change of brightness, contrast and saturation, and of the hue in turns.
        jitter_chance: share of the patches whose colours change.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        image: str | list[str],
        first_crop: float = 0.5,
        scale: tuple[float, float] = (1 / 500, 1.0),
        degrees: float = 30.0,
        shear: float = 30.0,
        flip: float = 0.5,
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
        jitter_chance: float = 0.5,
    ) -> None:
        super().__init__(setting)
        self.first_crop, self.scale, self.degrees, self.shear = first_crop, scale, degrees, shear
        self.flip, self.jitter, self.jitter_chance = flip, jitter, jitter_chance
        self._check_options()
        files = [image] if isinstance(image, str) else image
        if not files:
            raise UserError("one_image needs an image: image=FILE, or a list of files.")
        self.photographs = [self._open(file) for file in files]
        self.names = [os.path.basename(file) for file in files]
        self.note(
            "Crops of one image teach large students well and small ones badly: on CIFAR-100 the paper's WRN-40-4 taught a "
            "WRN-16-4 to 74 %, but others measured 34.6 % for a WRN-16-1. Prefer a pool of images for a small student."
        )

    def pictures(self, numbers: range) -> Made:
        """Patches of these numbers."""
        which = [number % len(self.photographs) for number in numbers]
        patches = [self.patch(self.photographs[i], number) for i, number in zip(which, numbers, strict=True)]
        return Made(torch.stack(patches), None, [self.names[i] for i in which])

    def patch(self, photograph: Image.Image, number: int) -> Tensor:
        """(3, H, W) in [0, 1]: one patch."""
        random = self.random(number)
        box = random_box(random, photograph.size, self.first_crop, self.scale, self.setting.size)
        angle, shear = random.uniform(-1, 1, 2) * np.radians([self.degrees, self.shear])
        flip = random.random() < self.flip
        patch = turned_crop(photograph, box, self.setting.size, angle, shear, flip)
        if random.random() < self.jitter_chance:
            patch = jittered(patch, random, self.jitter)
        pixels: Tensor = v2.functional.pil_to_tensor(patch)
        return pixels.float() / 255

    def _open(self, file: str) -> Image.Image:
        path = os.path.expanduser(file)
        if os.path.isdir(path):
            raise UserError(f"one_image: {file} is a folder. Name one image, or use pool(images={file!r}).")
        if not os.path.exists(path):
            raise FileNotFoundError(f"one_image: the image {file} does not exist.")
        try:
            photograph = read_image(path)
        except BadImageError as error:
            cause = str(error).partition(" cannot be decoded: ")[2].partition(". Download")[0]
            raise BadImageError(
                f"one_image: {file} cannot be read as an image: {cause}. Name an image ({', '.join(sorted(EXTENSIONS))})."
            ) from None
        needed = math.ceil(math.sqrt(2) * max(self.setting.size) / self.first_crop)
        if min(photograph.size) < needed:
            width, height = photograph.size
            raise UserError(
                f"one_image: {file} is too small: its shorter side is {min(width, height)} pixels ({width} x {height}), and "
                f"crops of {self.setting.size[1]} x {self.setting.size[0]} need at least {needed}. Name a larger photograph."
            )
        spread = ImageStat.Stat(photograph.convert("L")).stddev[0]
        if spread < FLAT:
            self.note(
                f"{file} is almost of one colour (standard deviation {spread:.1f} of 255), so its crops are all alike. Use "
                "a photograph full of different things."
            )
        return photograph

    def _check_options(self) -> None:
        low, high = self.scale
        rules = {
            "first_crop": (0 < self.first_crop <= 1, "above 0 and at most 1"),
            "scale": (0 < low <= high <= 1, "two shares of the area, 0 < smallest <= largest <= 1"),
            "degrees": (0 <= self.degrees <= 180, "between 0 and 180"),
            "shear": (0 <= self.shear <= 60, "between 0 and 60 degrees"),
            "flip": (0 <= self.flip <= 1, "between 0 and 1"),
            "jitter": (
                all(0 <= part <= 1 for part in self.jitter[:3]) and 0 <= self.jitter[3] <= 0.5,
                "three changes between 0 and 1, and one of the hue between 0 and 0.5",
            ),
            "jitter_chance": (0 <= self.jitter_chance <= 1, "between 0 and 1"),
        }
        for name, (holds, expectation) in rules.items():
            if not holds:
                raise UserError(f"one_image: {name} is {getattr(self, name)!r}; it must be {expectation}.")


def random_box(
    random: np.random.Generator,
    image_size: tuple[int, int],
    first_crop: float,
    scale: tuple[float, float],
    size: tuple[int, int],
) -> Box:
    """A random crop of a random square.

    The crop's area is uniform in `scale` of the square's; its aspect is that of `size` times a factor whose logarithm is
    uniform between those of 3/4 and 4/3. Crops that do not fit into the square are drawn again, as in the paper's code.

    Args:
        random: where the numbers come from.
        image_size: (width, height) of the image.
        first_crop: side of the square, as a share of the image's shorter side.
        scale: smallest and largest share of the square's area.
        size: (height, width) of the pictures.

    Returns:
        (left, top, right, bottom) in pixels, within the image.
    """
    side = first_crop * min(image_size)
    left, top = random.random(2) * (np.array(image_size) - side)
    for _ in range(100):
        area = random.uniform(*scale) * side * side
        aspect = size[1] / size[0] * math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if max(width, height) <= side:
            break
    else:  # nearly the whole square is asked for, and only one aspect would fit
        width, height = min(width, side), min(height, side)
    left, top = left + random.random() * (side - width), top + random.random() * (side - height)
    return left, top, left + width, top + height


def inverse_turn(angle: float, shear: float, flip: bool) -> NDArray[np.float64]:
    """(2, 2): from a place in the patch to the place in the crop that is shown there, both counted from their centres.

    The inverse of: shear along the rows, then rotate, then flip; angles in radians.
    """
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    sheared = np.array([[1.0, math.tan(shear)], [0.0, 1.0]])
    turn: NDArray[np.float64] = sheared @ rotation @ np.diag([-1.0 if flip else 1.0, 1.0])
    return turn


def turned_crop(
    image: Image.Image, box: Box, size: tuple[int, int], angle: float, shear: float, flip: bool
) -> Image.Image:
    """The centre of a crop after rotation, shear and flip, resized so that nothing outside the crop is ever shown.

    Args:
        image: of which it is a crop.
        box: (left, top, right, bottom) of the crop in pixels.
        size: (height, width) of the result.
        angle, shear, flip: as in `inverse_turn`.
    """
    turn = inverse_turn(angle, shear, flip)
    half = np.array([size[1], size[0]]) / 2
    larger = max(math.sqrt(2), float((np.abs(turn) @ half / half).max()))
    # One pixel more on each side, which interpolation may look at.
    width, height = (int(side) for side in np.ceil(2 * larger * half).astype(int) + 2)
    # Large photographs are first reduced by whole factors, which is several times quicker and looks the same.
    resized = image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    offset = np.array([width, height]) / 2 - turn @ half
    coefficients = (*turn[0], offset[0], *turn[1], offset[1])
    return resized.transform((size[1], size[0]), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def jittered(
    image: Image.Image, random: np.random.Generator, strength: tuple[float, float, float, float]
) -> Image.Image:
    """Other brightness, contrast, saturation and hue, in random order, as torchvision's ColorJitter."""
    functional = v2.functional
    changes = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    ]
    unchanged = (1.0, 1.0, 1.0, 0.0)
    for place in random.permutation(4):
        image = changes[place](image, unchanged[place] + random.uniform(-strength[place], strength[place]))
    return image
