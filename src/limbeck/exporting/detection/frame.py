"""The fixed rectangle of pixels that an exported detector takes, and how any image gets into it and its objects out again.

A detector that stretches its images gets them stretched. Any other gets them whole in the upper left corner, as large as
they fit; the rest has the colour that the normalisation makes 0, which is what such detectors were trained beside (EoMT:
black). A file has no padding mask, and the rest counts as a part of the picture.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from limbeck.detection import Found, Resize, Size
from limbeck.models.detection.base import Detector
from limbeck.tasks.base import Batch


@dataclass(frozen=True)
class Inside(Resize):
    """As large as fits into `short` (height) by `long` (width) pixels, the image's shape kept."""

    def size(self, height: int, width: int) -> Size:
        """(height, width) after resizing; rounded down."""
        scale = min(self.short / height, self.long / width)
        return max(1, int(height * scale)), max(1, int(width * scale))


@dataclass(frozen=True)
class Frame:
    """The rectangle.

    Attributes:
        size: (height, width) in pixels.
        stretch: images are stretched to it.
        antialias: smooth before shrinking.
        colour: of what no image covers, in [0, 1].
    """

    size: Size
    stretch: bool
    antialias: bool
    colour: tuple[float, float, float]

    @staticmethod
    def of(detector: Detector) -> "Frame":
        """That of a detector's exported file."""
        resize, facts = detector.resize, detector.facts
        mean = getattr(detector, "mean", None)
        mean = torch.as_tensor(detector.network.transform.image_mean if mean is None else mean)  # type: ignore[union-attr]
        if facts.family == "mask_queries" and facts.levels[0].kind == "block":
            mean = torch.zeros(3)
        red, green, blue = (round(value, 6) for value in mean.flatten().tolist())
        return Frame(facts.input_size, resize.stretch, resize.antialias, (red, green, blue))

    @property
    def resize(self) -> Resize:
        """How an image gets its size inside the rectangle."""
        if self.stretch:
            return Resize(*self.size, stretch=True, antialias=self.antialias)
        return Inside(*self.size, antialias=self.antialias)

    def put(self, picture: Tensor) -> Tensor:
        """(3, h, w) in [0, 1], already resized, in the corner of (3, H, W)."""
        whole = torch.tensor(self.colour)[:, None, None].repeat(1, *self.size)
        whole[:, : picture.shape[-2], : picture.shape[-1]] = picture
        return whole

    def pictures(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Size, Size]]:
        """Each image as (3, H, W), with its own area's size and its size before it was resized.

        Args:
            batches: of a loader that resizes as `resize` says.
        """
        for batch in batches:
            pictures = batch["pictures"]
            for image, own, original in zip(pictures.images, pictures.sizes, batch["original_sizes"], strict=True):
                yield self.put(image[:, : own[0], : own[1]]), own, tuple(original)


def taken_out(found: Found, own: Size, original: Size) -> Found:
    """What was found in the rectangle, in pixels of the image before it was resized; masks are resized bilinearly."""
    (height, width), (whole_height, whole_width) = own, original
    scale = torch.tensor([whole_width / width, whole_height / height] * 2)
    masks = found.masks
    if masks is not None:
        # One by one, so that a large image's masks are never all there as floats.
        drawn = [F.interpolate(mask[None, None, :height, :width].float(), original, mode="bilinear") for mask in masks]
        masks = torch.cat(drawn)[:, 0] > 0.5 if len(drawn) else torch.zeros(0, *original, dtype=torch.bool)
    return Found(found.boxes * scale, found.labels, found.scores, masks)


def as_found(answer: list[NDArray[np.generic]]) -> Found:
    """A file's outputs as what `Detector.detect` gives."""
    boxes, scores, labels, *masks = (torch.from_numpy(part) for part in answer)
    return Found(boxes, labels, scores, masks[0] if masks else None)
