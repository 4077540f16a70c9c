"""What is done to pictures before the teacher sees them, so that no single pixel pattern convinces it.

Numbers are drawn first, apart from what is done with them, so that the same picture can be shown twice in the same way
and what follows the pixels (patches that are kept) can follow them exactly.

Roll and flip: DeepInversion (arXiv:1912.08795). ColorShift, the decaying offset of whole channels and the repeats: Plug-In
Inversion (arXiv:2201.12961).
"""

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.call_checks import require_at_least


@dataclass(frozen=True)
class Augmentation:
    """How pictures are changed at each step.

    Attributes:
        flip: chance in [0, 1] that the whole batch is mirrored left to right.
        shared_offset: both axes roll by one number (as published for PSAQ-ViT) instead of one each.
        color_mean: ColorShift subtracts from each channel of each picture a number of [-color_mean, color_mean] ...
        color_scale: ... and divides by the exponential of one of [-color_scale, color_scale].
        channel_offset: standard deviation of what is added to each channel at the start; falls linearly to 0.
        pixel_units: ColorShift and offset count in pixel values of [0, 1] instead of the teacher's normalised ones.
        repeats: how often each picture is shown in a pass, each time under its own ColorShift and offset.
    """

    flip: float = 0.0
    shared_offset: bool = False
    color_mean: float = 0.0
    color_scale: float = 0.0
    channel_offset: float = 0.0
    pixel_units: bool = False
    repeats: int = 1


@dataclass(frozen=True)
class Drawn:
    """One step's numbers.

    Attributes:
        roll: (rows, columns) in pixels that the content moves down and right, around the edges.
        flip: mirrored left to right, after the roll.
        repeats: copies of each picture, one whole batch after another.
        offset: (B', 3, 1, 1) that is added; None for nothing.
        shift, scale: (B', 3, 1, 1) of (x - shift) / scale; None for nothing.
    """

    roll: tuple[int, int] = (0, 0)
    flip: bool = False
    repeats: int = 1
    offset: Tensor | None = None
    shift: Tensor | None = None
    scale: Tensor | None = None


def draw(
    augmentation: Augmentation, roll: tuple[int, int], batch: int, remaining: float, mean: Tensor, std: Tensor
) -> Drawn:
    """One step's numbers, from the global generators on the CPU, so that every device draws the same.

    Args:
        augmentation: what may be drawn.
        roll: (rows, columns), the largest roll in pixels.
        batch: B pictures.
        remaining: share of the iterations that is left, 1 to 0; scales the channel offset.
        mean, std: (1, 3, 1, 1) of the teacher, on the pictures' device.
    """
    rows = random.randint(-roll[0], roll[0])
    columns = rows if augmentation.shared_offset else random.randint(-roll[1], roll[1])
    flip = random.random() < augmentation.flip
    shape = (batch * augmentation.repeats, 3, 1, 1)
    offset = shift = scale = None
    if augmentation.channel_offset:
        offset = (torch.randn(shape) * augmentation.channel_offset * remaining).to(mean.device)
        offset = offset / std if augmentation.pixel_units else offset
    if augmentation.color_mean or augmentation.color_scale:
        shift = ((torch.rand(shape) * 2 - 1) * augmentation.color_mean).to(mean.device)
        scale = ((torch.rand(shape) * 2 - 1) * augmentation.color_scale).exp().to(mean.device)
        if augmentation.pixel_units:
            # ((x·std + mean - shift) / scale - mean) / std, written as (x - shift') / scale.
            shift = (shift + mean * (scale - 1)) / std
    return Drawn((rows, columns), flip, augmentation.repeats, offset, shift, scale)


def show(images: Tensor, drawn: Drawn) -> Tensor:
    """What the teacher is shown.

    Args:
        images: (B, 3, H, W), normalised.
        drawn: the numbers.

    Returns:
        (B · repeats, 3, H, W).
    """
    shown = roll(images, drawn.roll)
    if drawn.flip:
        shown = shown.flip(3)
    if drawn.repeats > 1:
        shown = shown.repeat(drawn.repeats, 1, 1, 1)
    if drawn.offset is not None:
        shown = shown + drawn.offset
    if drawn.shift is not None and drawn.scale is not None:
        shown = color_shift(shown, drawn.shift, drawn.scale)
    return shown


def roll(images: Tensor, offset: tuple[int, int]) -> Tensor:
    """Content moved down and right by `offset` pixels; what leaves on one side comes back on the other."""
    return images if offset == (0, 0) else images.roll(offset, (2, 3))


def color_shift(images: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(x - shift) / scale, per picture and channel."""
    return (images - shift) / scale


def scaled_roll(pixels_at_224: float, size: tuple[int, int], least: int = 1) -> tuple[int, int]:
    """A roll published for 224 x 224 pixels at another size, per axis."""
    height, width = size
    return max(least, round(pixels_at_224 * height / 224)), max(least, round(pixels_at_224 * width / 224))


def require_roll(method: str, roll: int | str) -> None:
    """Refuse a roll in pixels that is negative; a word stands for a choice made elsewhere.

    Raises:
        UserError: it is.
    """
    if not isinstance(roll, str):
        require_at_least(method, 0, roll=roll)


def at_input_size(images: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Normalised pictures at the teacher's own size, as `VisionModel.prepare` resizes them.

    The interpolation's weights sum to 1, so that it may as well come after the normalisation. Unlike `prepare` it does not
    clamp: shifted colours leave [0, 1] on purpose, and a clamp would end their gradient.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode=interpolation, align_corners=False, antialias=True)
