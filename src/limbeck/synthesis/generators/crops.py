"""Random views of a batch through which gradients flow, each picture with its own: shifts, resized crops, flips.

A view is separable: its rows are linear combinations of the picture's rows, its columns of the picture's columns. Two
matrices of weights per picture say all of it, and two products apply it, forwards and backwards in the same order each
time; kernels that gather single pixels add up their gradients in any order.
"""

import math

import torch
from torch import Tensor

SCALE = (0.25, 1.0)
RATIO = (3 / 4, 4 / 3)


def random_shifts(images: Tensor, share: float = 1 / 8) -> Tensor:
    """Each picture padded with black, cropped to its size somewhere, and flipped with probability 1/2.

    CMI's global view, and what Fast-DFKD and NAYER show the teacher.

    Args:
        images: (B, 3, H, W) in [0, 1].
        share: of each side, that is padded at its either end; published are 4 pixels of 32.
    """
    batch = len(images)
    sides = []
    for size in images.shape[-2:]:
        most = round(share * size)
        first = torch.randint(-most, most + 1, (batch,)).to(images)
        sides.append(sampling_weights(first, torch.full_like(first, size), size))
    return resample(images, sides[0], _flipped_sometimes(sides[1]))


def random_resized_crops(
    images: Tensor, scale: tuple[float, float] = SCALE, ratio: tuple[float, float] = RATIO
) -> Tensor:
    """A part of each picture, enlarged to its size, and flipped with probability 1/2: CMI's local view.

    Args:
        images: (B, 3, H, W).
        scale: share of the area, drawn uniformly.
        ratio: width to height, its logarithm drawn uniformly; cut off where the part would leave the picture.
    """
    batch, height, width = len(images), images.shape[-2], images.shape[-1]
    area = torch.empty(batch).uniform_(*scale) * height * width
    aspect = torch.empty(batch).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp()
    sides = []
    for size, wanted in ((height, (area / aspect).sqrt()), (width, (area * aspect).sqrt())):
        length = wanted.clamp(1, size)
        first = torch.rand(batch) * (size - length)
        sides.append(sampling_weights(first.to(images), length.to(images), size))
    return resample(images, sides[0], _flipped_sometimes(sides[1]))


def sampling_weights(first: Tensor, length: Tensor, size: int) -> Tensor:
    """The rows (or columns) of a part of a picture, enlarged to `size`, as combinations of the picture's: bilinear.

    Args:
        first: (B,) where each part begins, in pixels; outside of the picture there is black.
        length: (B,) of each part, in pixels.
        size: rows of the picture, and of the result.

    Returns:
        (B, size, size): weights of the picture's rows in the last dimension, for each row of the result.
    """
    cells = torch.arange(size, device=first.device, dtype=first.dtype)
    first, length = first[:, None], length[:, None]
    places = first + (cells + 0.5) * (length / size) - 0.5
    # What is outside of the part must not shine in at its rim.
    places = places.clamp(first, first + length - 1)
    return (1 - (places[..., None] - cells).abs()).clamp_min(0)


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, 3, H, W) by `sampling_weights` of its rows, (B, H, H), and of its columns, (B, W, W)."""
    return rows[:, None] @ images @ columns[:, None].transpose(-2, -1)


def _flipped_sometimes(columns: Tensor) -> Tensor:
    flipped = torch.rand(len(columns), 1, 1) < 0.5
    return torch.where(flipped.to(columns.device), columns.flip(1), columns)
