"""What a view is: how images are cropped, flipped and disturbed before a model sees them. Imports nothing heavy."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from limbeck.errors import UserError

Size = int | tuple[int, int]

# A mirrored digit is no digit, or another one.
UNFLIPPABLE = ("digits", "mnist", "svhn")

# Stricter than timm, which silently ignores a part without a number and takes its default.
RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d+|p\d*\.?\d+|mstd\d*\.?\d+|mmax\d+|inc[01]|t(weights|3aw?)))*")

# Sides up to which images are treated as those of CIFAR: shifted rather than zoomed into, and measured whole.
SMALL_IMAGE = 64


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """The options of training and evaluation views.

    Attributes:
        crop: "resized" is the random resized crop; "pad" pads by `pad` black pixels and crops; "none" only resizes and
            crops the centre; "auto" is "pad" for images and views of at most 64 pixels, else "resized".
        crop_scale: smallest and largest share of the area that the random resized crop keeps.
        pad: pixels added on each side by "pad"; "auto" is an eighth of the view's shorter side (4 for 32 pixels).
        flip: chance of a horizontal flip; "auto" is 0 for digits (`digits`, and names with mnist or svhn), else 0.5.
        rand_augment: a RandAugment policy in timm's notation, such as "rand-m9-mstd0.5-inc1".
        color_jitter: largest relative change of brightness, contrast and saturation.
        random_erasing: chance that one rectangle is replaced by noise.
        eval_crop: share of the shorter side that the centre crop keeps; images already of the view's size are not
            cropped.
        interpolation: of every resize.

    Raises:
        UserError: a value is out of its range.
    """

    crop: Literal["auto", "resized", "pad", "none"] = "auto"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    pad: int | Literal["auto"] = "auto"
    flip: float | Literal["auto"] = "auto"
    rand_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    eval_crop: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        rules = {
            "crop": (self.crop in ("auto", "resized", "pad", "none"), "auto, resized, pad or none"),
            "crop_scale": (0 < low <= high <= 1, "two shares of the area, 0 < smallest <= largest <= 1"),
            "pad": (self.pad == "auto" or self.pad >= 0, "auto or at least 0"),
            "flip": (self.flip == "auto" or 0 <= self.flip <= 1, "auto or between 0 and 1"),
            "rand_augment": (
                self.rand_augment is None or RAND_AUGMENT.fullmatch(self.rand_augment) is not None,
                "a policy in timm's notation, such as 'rand-m9-mstd0.5-inc1' (magnitude 9 of 10, its standard "
                "deviation 0.5, increasing)",
            ),
            "color_jitter": (self.color_jitter >= 0, "at least 0"),
            "random_erasing": (0 <= self.random_erasing <= 1, "between 0 and 1"),
            "eval_crop": (0 < self.eval_crop <= 1, "above 0 and at most 1"),
            "interpolation": (self.interpolation in ("bilinear", "bicubic"), "bilinear or bicubic"),
        }
        for name, (holds, expectation) in rules.items():
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {expectation}.")


def resolve_options(options: ViewOptions, size: Size, native_size: tuple[int, int], data_name: str) -> ViewOptions:
    """The options with every "auto" replaced by its value for this data set.

    Args:
        options: what the user asked for.
        size: side, or (height, width), of the view in pixels.
        native_size: (height, width) of the data set's images.
        data_name: the data set's name as the user gave it; only the last part of a path counts.
    """
    crop, flip = options.crop, options.flip
    if crop == "auto":
        crop = "pad" if max(*native_size, *as_pair(size)) <= SMALL_IMAGE else "resized"
    pad = min(as_pair(size)) // 8 if options.pad == "auto" else options.pad
    if flip == "auto":
        name = PurePath(data_name).name.lower()
        flip = 0.0 if any(word in name for word in UNFLIPPABLE) else 0.5
    return dataclasses.replace(options, crop=crop, pad=pad, flip=flip)


def as_pair(size: Size) -> tuple[int, int]:
    """(height, width) of a size that may be given as one side."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
