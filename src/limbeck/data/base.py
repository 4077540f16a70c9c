"""What every source of images is: numbered pictures with an optional label, and a split into train and val."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class ImageSource(ABC):
    """Numbered images, read one at a time; small, picklable, safe in worker processes.

    Attributes:
        labels: (len(self),) int64 class indices, or None for unlabelled images.
        in_memory: reading costs no disk access and no decoding.
        groups: (len(self),) int64, where each image comes from, for sources that mix several; batches for training then
            hold each group's share. None for all others.
    """

    in_memory: bool = False
    groups: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB.

        Raises:
            BadImageError: the file cannot be decoded; the message names the file.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """A name for the image that a person can find it by: its file, or the source and number."""


@dataclass
class DataSet:
    """A named pair of image sources with their classes.

    Attributes:
        name: what the user gave.
        train: images to learn from.
        val: labelled images to measure on; None for unlabelled folders without a validation set.
        class_names: in label order; None when nothing is labelled.
        native_size: (height, width), the median size of the images, for choosing the view size.
        record: how the split came about (given or made, seed, counts, file lists' hash), saved with the run.
        notes: what the user should know (skipped images and their count, converted modes, ...).
        labels_by_teacher: the training labels are a network's answers to images that were made for it, not a person's.
    """

    name: str
    train: ImageSource
    val: ImageSource | None
    class_names: tuple[str, ...] | None
    native_size: tuple[int, int]
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    labels_by_teacher: bool = False

    @property
    def labelled(self) -> bool:
        """Whether the training images carry labels, whoever gave them (see `labels_by_teacher`)."""
        return self.train.labels is not None
