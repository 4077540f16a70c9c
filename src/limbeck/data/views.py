"""From an image to the tensor that both models are shown, reproducibly.

A training view is a pure function of (image, seed): the global random states of Python, NumPy and torch are neither
read nor changed, so the same seed gives the same pixels in any process, in any order.

Images stay in [0, 1], since each model normalises for itself. Random erasing (Zhong et al., arXiv:1708.04896, as in
timm) therefore fills with normal noise of mean 0.5 and standard deviation 0.25, clipped to [0, 1], where the usual
implementation fills a normalised image with standard normal noise.
"""

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2

from limbeck.data.options import SMALL_IMAGE, Size, ViewOptions, as_pair, resolve_options
from limbeck.errors import UserError

View = Callable[[Image.Image, int], Tensor]

# timm's RandAugment fills what it shifts in with the mean colour of ImageNet.
_FILL = (124, 116, 104)


def train_view(options: ViewOptions, size: Size, native_size: tuple[int, int], data_name: str) -> View:
    """The training view of a data set.

    Args:
        options: crop, flip and augmentation.
        size: side, or (height, width), of the view in pixels.
        native_size: (height, width) of the data set's images, for `crop="auto"`.
        data_name: name of the data set, for `flip="auto"`.

    Returns:
        (RGB image, seed) -> (3, H, W) float32 in [0, 1]; picklable.

    Raises:
        UserError: `rand_augment` cannot be parsed.
    """
    options, pair = resolve_options(options, size, native_size, data_name), as_pair(size)
    mode = v2.InterpolationMode(options.interpolation)
    crops: dict[str, list[Callable[..., Image.Image]]] = {
        "resized": [v2.RandomResizedCrop(pair, scale=options.crop_scale, interpolation=mode)],
        "pad": [_Cover(pair, 1.0, options.interpolation), v2.RandomCrop(pair, padding=int(options.pad))],
        "none": [_Cover(pair, 1.0, options.interpolation)],
    }
    steps = crops[options.crop]
    if options.flip != "auto" and options.flip > 0:
        steps.append(v2.RandomHorizontalFlip(options.flip))
    if options.rand_augment is not None:
        steps.append(_rand_augment(options.rand_augment, min(pair), options.interpolation))
    if options.color_jitter:
        steps.append(v2.ColorJitter(*[options.color_jitter] * 3))
    uses_timm = options.rand_augment is not None or options.random_erasing > 0
    return _SeededView(steps, options.random_erasing, uses_timm)


def eval_view(options: ViewOptions, size: Size, native_size: tuple[int, int]) -> View:
    """The view for measuring: resize so that the shorter side is size / eval_crop, then crop the centre.

    Images of a data set whose native size is the view's, or at most 64 pixels, are not cropped.

    Args:
        options: only `eval_crop` and `interpolation` count.
        size: side, or (height, width), of the view in pixels.
        native_size: (height, width) of the data set's images.

    Returns:
        (RGB image, seed) -> (3, H, W) float32 in [0, 1]; the seed is not used. Picklable.
    """
    whole = native_size == as_pair(size) or max(native_size) <= SMALL_IMAGE
    share = 1.0 if whole else options.eval_crop
    return _PlainView(_Cover(as_pair(size), share, options.interpolation))


class _SeededView:
    def __init__(self, steps: list[Callable[..., Image.Image]], erasing: float, uses_timm: bool) -> None:
        self.steps = steps
        # Only timm's operations draw from Python and NumPy; saving those states takes longer than a small crop.
        self.seeded_python = seeded_python if uses_timm else contextlib.nullcontext
        self.erasing = RandomErasing(erasing, mode="pixel", device="cpu") if erasing > 0 else None

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        with seeded_torch(seed), self.seeded_python(seed):
            for step in self.steps:
                image = step(image)
            tensor = _to_tensor(image)
            return tensor if self.erasing is None else self._erase(tensor)

    def _erase(self, tensor: Tensor) -> Tensor:
        assert self.erasing is not None
        noise = self.erasing(torch.full_like(tensor, torch.nan))
        return torch.where(noise.isnan(), tensor, (0.5 + 0.25 * noise).clamp(0, 1))


class _PlainView:
    def __init__(self, cover: "_Cover") -> None:
        self.cover = cover

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        return _to_tensor(self.cover(image))


class _Cover:
    """Resize, keeping the aspect, so that a centre crop of `size` keeps `share` of the side that limits it; crop it."""

    def __init__(self, size: tuple[int, int], share: float, interpolation: str) -> None:
        self.size = size
        self.share = share
        self.mode = v2.InterpolationMode(interpolation)

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if image.size == (width, height) and self.share == 1.0:
            return image
        wanted_height, wanted_width = int(height / self.share), int(width / self.share)
        scale = max(wanted_height / image.height, wanted_width / image.width)
        resized = [max(round(image.height * scale), wanted_height), max(round(image.width * scale), wanted_width)]
        image = v2.functional.resize(image, resized, interpolation=self.mode)
        cropped: Image.Image = v2.functional.center_crop(image, [height, width])
        return cropped


def _rand_augment(policy: str, side: int, interpolation: str) -> Callable[..., Image.Image]:
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    parameters = {"translate_const": int(side * 0.45), "img_mean": _FILL, "interpolation": resample}
    try:
        augment = rand_augment_transform(policy, parameters)
        for operation in augment.ops:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
        # A policy whose numbers make no sense is only noticed when it is applied.
        with seeded_python(0):
            augment(Image.new("RGB", (8, 8)))
    except Exception as error:
        raise UserError(
            f"rand_augment is {policy!r}, which timm cannot read as a RandAugment policy; write for example "
            "'rand-m9-mstd0.5-inc1' (magnitude 9 of 10, its standard deviation 0.5, increasing)."
        ) from error
    applied: Callable[..., Image.Image] = augment
    return applied


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """As timm's, but never down to 0 bits: that is a black image for older Pillow, and an error for newer."""
    return image if bits >= 8 else ImageOps.posterize(image, max(bits, 1))


def _to_tensor(image: Image.Image) -> Tensor:
    pixels: Tensor = v2.functional.pil_to_tensor(image)
    return pixels.to(torch.float32).div_(255)


@contextlib.contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Torch's global random state (CPU) as after this seed; restored on leaving."""
    # Not torch.manual_seed, which would also touch the accelerators' generators.
    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(state)


@contextlib.contextmanager
def seeded_python(seed: int) -> Iterator[None]:
    """Python's and NumPy's global random states as after this seed; restored on leaving."""
    states = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
