"""The types that detectors, their data, their losses and the trainer share: pictures and targets in, predictions out.

Boxes come in two forms. In pixels they are x1, y1, x2, y2 of the picture, a box around the pixel in the corner being
0, 0, 1, 1. As shares they are centre x, centre y, width, height in [0, 1] of the image's own area, padding left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from limbeck.outputs import ModelFacts

Size = tuple[int, int]
"""(height, width) in pixels."""

ScoreKind = Literal["softmax", "sigmoid"]
"""How class logits become scores: K classes and "no object" compete, or each class says yes or no for itself."""

DetectorFamily = Literal["two_stage", "dense", "queries", "mask_queries"]
"""Proposals judged one by one; every cell of the maps; a set of queries with boxes; a set of queries with masks only."""


@dataclass
class Pictures:
    """A batch of images of unequal sizes, padded to one rectangle.

    Attributes:
        images: (B, 3, H, W) float in [0, 1]; 0 beyond an image's own area.
        sizes: (height, width) of each image's own area, which lies in the upper left corner.
    """

    images: Tensor
    sizes: tuple[Size, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def size(self) -> Size:
        """(height, width) with the padding."""
        return int(self.images.shape[-2]), int(self.images.shape[-1])

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def inside(self) -> Tensor:
        """(B, H, W) bool: the images' own areas."""
        height, width = self.size
        own = torch.tensor(self.sizes, device=self.images.device)
        rows = torch.arange(height, device=own.device) < own[:, :1]
        columns = torch.arange(width, device=own.device) < own[:, 1:]
        return rows[:, :, None] & columns[:, None, :]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Pictures":
        """The same on another device."""
        return Pictures(self.images.to(device, non_blocking=non_blocking), self.sizes)

    def pin_memory(self) -> "Pictures":
        """The same in page-locked memory, as loaders ask for it."""
        return Pictures(self.images.pin_memory(), self.sizes)

    def first(self, count: int) -> "Pictures":
        """The first `count` images."""
        return Pictures(self.images[:count], self.sizes[:count])


@dataclass
class Target:
    """What one picture shows; crowds are left out.

    Attributes:
        boxes: (N, 4) float32, x1, y1, x2, y2 in the picture's pixels, inside the image's own area, of positive area.
        labels: (N,) int64, 0 to K - 1 in the order of the class names.
        masks: (N, height, width) bool at the size of the image's own area; None where the data has boxes only.
        scores: (N,) in [0, 1], how sure a teacher was of a pseudo-label; None for true labels.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None
    scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Target":
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Target":
        """The same in page-locked memory, as loaders ask for it."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Target":
        masks, scores = (None if part is None else change(part) for part in (self.masks, self.scores))
        return Target(change(self.boxes), change(self.labels), masks, scores)


@dataclass
class Found:
    """What a detector finds in one image, best first, at the size that was asked for.

    Attributes:
        boxes: (N, 4) float32, x1, y1, x2, y2 in pixels.
        labels: (N,) int64, in the order of the detector's class names.
        scores: (N,) float32 in [0, 1], falling.
        masks: (N, height, width) bool; None of a detector without masks.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Resize:
    """How a detector wants an image's size.

    Attributes:
        short: the shorter side becomes this many pixels ...
        long: ... unless the longer one would exceed this.
        stretch: instead, height `short` and width `long`, whatever the image's shape.
        antialias: smooth before shrinking.
    """

    short: int
    long: int
    stretch: bool = False
    antialias: bool = True

    def with_sides(self, short: int | None, long: int | None) -> "Resize":
        """The same with other sides; one that is not given keeps its proportion to the other."""
        if short is None and long is None:
            return self
        if short is None:
            short = max(1, round(self.short * (long or 0) / self.long))
        return replace(self, short=short, long=long or max(1, round(self.long * short / self.short)))

    def size(self, height: int, width: int) -> Size:
        """(height, width) after resizing; rounded down, as torchvision does."""
        if self.stretch:
            return self.short, self.long
        scale = min(self.short / min(height, width), self.long / max(height, width))
        return max(1, int(height * scale)), max(1, int(width * scale))


@dataclass
class Predictions:
    """Every query's (or cell's) answer, before any of them is chosen.

    Attributes:
        logits: (B, Q, K) where classes score by sigmoid, (B, Q, K + 1) by softmax, "no object" last; K classes in the
            order of the facts' class names, slots without a class left out.
        boxes: (B, Q, 4) centre x, centre y, width, height, shares of each image's own area; None of mask queries.
        masks: (B, Q, h, w) logits over the padded picture; None without masks.
        corners: (B, Q, 4, bins) logits of the distribution of each box side (left, top, right, bottom); None of heads
            that give one number a side.
    """

    logits: Tensor
    boxes: Tensor | None = None
    masks: Tensor | None = None
    corners: Tensor | None = None


@dataclass
class Regions:
    """A two-stage detector's answers on given boxes.

    Attributes:
        boxes: of each image, (n, 4) in the picture's pixels.
        logits: (sum of n, K + 1), the classes in the order of the class names, background last.
        deltas: (sum of n, K, 4), box corrections of each class in torchvision's coding.
        mask_boxes: of each image, (m, 4), the boxes of true objects on which masks are learned; None without masks.
        mask_logits: (sum of m, K, side, side); None without masks.
    """

    boxes: tuple[Tensor, ...]
    logits: Tensor
    deltas: Tensor
    mask_boxes: tuple[Tensor, ...] | None = None
    mask_logits: Tensor | None = None


@dataclass
class Tokens:
    """The encoder's cells that became queries, named so that another network with these strides can be asked the same.

    Attributes:
        strides: (B, Q) int64, pixels of the picture per cell of the map that the query came from.
        rows, columns: (B, Q) int64, the cell on that map.
    """

    strides: Tensor
    rows: Tensor
    columns: Tensor


@dataclass
class DetectionOutputs:
    """What a detector says about a batch; what was not asked for is absent.

    Attributes:
        size: (height, width) of the padded pictures.
        sizes: of each image's own area.
        losses: with targets, the library's own training terms, weighted as it weights them; their sum is its loss.
        maps: the requested feature maps by level name, each (B, C, H, W) over the padded picture.
        final: (B, C, H, W), the last map after the backbone's final norm, of plain transformers.
        predictions: one for each decoder layer, shallow to deep, denoising queries and all groups but the first left
            out; the last is the detector's answer.
        regions: a two-stage detector's answers on the proposals it was trained on, or its own at test time.
        read_regions: its answers on the boxes of another's regions.
        tokens: which cells became the queries of `predictions`.
        read_queries: its decoder's layers' answers on the queries that another's tokens name.
    """

    size: Size
    sizes: tuple[Size, ...]
    losses: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    final: Tensor | None = None
    predictions: tuple[Predictions, ...] = ()
    regions: Regions | None = None
    read_regions: Callable[[Regions], Regions] | None = None
    tokens: Tokens | None = None
    read_queries: Callable[[Tokens], tuple[Predictions, ...]] | None = None


@dataclass(frozen=True, kw_only=True)
class DetectorFacts(ModelFacts):
    """What losses and tables may know of a detector before it runs.

    `input_size` is that of `levels`' grids, `pooled_channels` is 0; the levels are of kind `fpn` (what the heads
    read), `encoder` (what the decoder attends to) or `block` (a plain transformer's).

    Attributes:
        class_names: in label order; `num_classes` counts them.
        family: how it predicts.
        scores: how its class logits become scores.
        has_masks: it predicts masks.
        num_queries: Q of its predictions; None where that depends on the picture.
        corner_bins: bins of each box side's distribution; None of heads that give one number a side.
        corner_scale: what the bins mean (D-FINE's `up` and `reg_scale`); pairs whose scales differ cannot be compared.
        reads_queries: it can be asked about another's queries (`DetectionOutputs.tokens` and `read_queries`).
    """

    class_names: tuple[str, ...]
    family: DetectorFamily
    scores: ScoreKind
    has_masks: bool = False
    num_queries: int | None = None
    corner_bins: int | None = None
    corner_scale: tuple[float, ...] | None = None
    reads_queries: bool = False


def pad(images: Sequence[Tensor], divisor: int = 32) -> Pictures:
    """One rectangle of (3, h, w) images in [0, 1]: the largest height and width, rounded up to multiples of `divisor`."""
    sizes = tuple((int(image.shape[-2]), int(image.shape[-1])) for image in images)
    height, width = (-(-max(of) // divisor) * divisor for of in zip(*sizes, strict=True))
    whole = images[0].new_zeros(len(images), 3, height, width)
    for place, image in zip(whole, images, strict=True):
        place[:, : image.shape[-2], : image.shape[-1]] = image
    return Pictures(whole, sizes)


def name_pairs(own: Sequence[str], other: Sequence[str]) -> dict[int, int]:
    """Classes that two lists of names share: from indices of the first to indices of the second.

    Names meet if they are equal; those that remain, if they are equal without regard to capitals, spaces, hyphens and
    underscores. Each class meets at most one.
    """
    pairs: dict[int, int] = {}
    for spelt in (str, _plain):
        places: dict[str, list[int]] = {}
        for index, name in enumerate(other):
            if index not in pairs.values():
                places.setdefault(spelt(name), []).append(index)
        for index, name in enumerate(own):
            if index not in pairs and places.get(spelt(name)):
                pairs[index] = places[spelt(name)].pop(0)
    return pairs


def _plain(name: str) -> str:
    return name.casefold().translate(str.maketrans("", "", " _-"))
