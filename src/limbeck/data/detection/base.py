"""What every source of scenes is: numbered pictures, each with boxes, classes and perhaps masks, split into train and val.

A box is x1, y1, x2, y2 in pixels: its left and top edge, and the edge after its last column and row, so that a box
around the single pixel in the corner is 0, 0, 1, 1.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.base import ImageSource
from limbeck.data.detection.masks import Segment, decode_segment
from limbeck.data.split import SubsetSource
from limbeck.errors import UserError


@dataclass(frozen=True)
class Objects:
    """What one image shows.

    Attributes:
        boxes: (N, 4) float32, x1, y1, x2, y2 in pixels, inside the image, each with a positive area.
        labels: (N,) int64, 0 to K - 1, in the order of the class names.
        is_crowd: (N,) bool; a region that hides an unknown number of objects, neither to be learned nor to be missed.
        area: (N,) float32 in pixels, which sorts objects into small, medium and large: the file's own where it gives
            one, else the mask's, else the box's.
        segments: the N masks as they are stored, or None where the source has boxes only.
        scores: (N,) float32 in [0, 1], how sure a teacher was of its labels; None for true labels.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    area: NDArray[np.float32]
    segments: tuple[Segment, ...] | None = None
    scores: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def masks(self, height: int, width: int) -> NDArray[np.bool_] | None:
        """The masks, decoded now.

        Args:
            height: of the image.
            width: of the image.

        Returns:
            (N, height, width) bool, or None where the source has boxes only.

        Raises:
            UserError: a stored mask has another size.
            MissingExtraError: polygons need `faster_coco_eval`, which is not installed.
        """
        if self.segments is None:
            return None
        masks = np.zeros((len(self), height, width), dtype=bool)
        for mask, segment in zip(masks, self.segments, strict=True):
            mask[:] = decode_segment(segment, height, width)
        return masks


def no_objects() -> Objects:
    """What is known of an image that nobody has annotated, or that shows nothing."""
    return Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0, np.float32))


class SceneSource(ImageSource):
    """Numbered images with their objects, read one at a time; small, picklable, safe in worker processes.

    An image source without labels of whole images, so that whatever reads images reads these too.

    Attributes:
        class_names: in label order.
        has_masks: every object has a mask.
    """

    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...]
    has_masks: bool

    @abstractmethod
    def objects(self, index: int) -> Objects:
        """The objects of an image; none for one that shows only background."""

    @abstractmethod
    def image_id(self, index: int) -> int | str:
        """COCO's id, or the name of the file without its extension; no other image of the source has it."""

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels, without decoding the image."""

    def counts(self) -> tuple[NDArray[np.int64], int]:
        """(K,) objects of each class over all images, crowds left out; and the images without any annotation."""
        of_classes, empty = np.zeros(len(self.class_names), dtype=np.int64), 0
        for index in range(len(self)):
            objects = self.objects(index)
            of_classes += np.bincount(objects.labels[~objects.is_crowd], minlength=len(of_classes))
            empty += len(objects) == 0
        return of_classes, empty


class SceneSubset(SubsetSource, SceneSource):
    """Some scenes of a source, in the order of `indices`."""

    source: SceneSource

    def __init__(self, source: SceneSource, indices: NDArray[np.int64] | Sequence[int]) -> None:
        super().__init__(source, np.asarray(indices, dtype=np.int64))
        self.class_names = source.class_names
        self.has_masks = source.has_masks

    def objects(self, index: int) -> Objects:
        """As in the whole source."""
        return self.source.objects(int(self.indices[index]))

    def image_id(self, index: int) -> int | str:
        """As in the whole source."""
        return self.source.image_id(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        """(height, width), as in the whole source."""
        return self.source.size(int(self.indices[index]))


@dataclass
class Scenes:
    """A named pair of scene sources with their classes.

    Attributes:
        name: what the user gave.
        train: scenes to learn from.
        val: scenes to measure on.
        class_names: in label order.
        has_masks: every object of both has a mask.
        native_size: (height, width), the median size of the training images.
        record: how the split came about (given or made, seed, counts, the annotations' hash), saved with the run.
        notes: what the user should know (skipped or clipped objects and their counts, images without objects, ...).
    """

    name: str
    train: SceneSource
    val: SceneSource
    class_names: tuple[str, ...]
    has_masks: bool
    native_size: tuple[int, int]
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def split_scenes(source: SceneSource, val_fraction: float, seed: int) -> tuple[SceneSubset, SceneSubset]:
    """Hold out a share of the images by their ids, whatever order the files list them in.

    Args:
        source: all images.
        val_fraction: share to hold out, between 0 and 1; at least one image, and at least one stays.
        seed: of the random choice.

    Returns:
        Training images and held-out images, each in the order of the source.

    Raises:
        UserError: there are fewer than two images.
    """
    total = len(source)
    if total < 2:
        raise UserError(f"Of {total} image none can be held out for validation. Add images, or give a validation set.")
    by_id = np.array(sorted(range(total), key=source.image_id), dtype=np.int64)
    count = int(np.clip(np.floor(val_fraction * total + 0.5), 1, total - 1))
    val = np.sort(by_id[np.random.RandomState(seed).permutation(total)[:count]])
    return SceneSubset(source, np.setdiff1d(np.arange(total), val)), SceneSubset(source, val)
