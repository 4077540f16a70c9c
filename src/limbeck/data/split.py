"""Which images are learned from and which are held out: stratified, seeded, reproducible.

In a made split each class gives its share of the images, rounded, at least one, and keeps at least one for training;
a class with a single image stays in training. (A split of the whole set at once, as in scikit-learn's `stratify`,
may leave rare classes without any image to measure on, and refuses classes with one image.)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import train_test_split

from limbeck.data.base import ImageSource
from limbeck.errors import UserError

Indices = NDArray[np.int64]


class SubsetSource(ImageSource):
    """Some images of a source, in the order of `indices`."""

    def __init__(self, source: ImageSource, indices: Indices) -> None:
        self.labels = None if source.labels is None else source.labels[indices]
        self.source: ImageSource = source.source if isinstance(source, SubsetSource) else source
        self.indices: Indices = source.indices[indices] if isinstance(source, SubsetSource) else indices
        self.in_memory = source.in_memory
        self.groups = None if source.groups is None else source.groups[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB."""
        return self.source.read(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """As in the whole source."""
        return self.source.describe(int(self.indices[index]))


def spread(source: ImageSource, most: int) -> ImageSource:
    """At most so many images, evenly spaced over the source, which is often sorted by class; all where there are fewer."""
    if len(source) <= most:
        return source
    return SubsetSource(source, evenly(len(source), most))


def evenly(total: int, count: int) -> Indices:
    """`count` numbers, at most `total`, evenly spaced from 0 to total - 1."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def stratified_split(
    labels: Indices, val_fraction: float, seed: int, class_names: Sequence[str]
) -> tuple[Indices, Indices, list[str]]:
    """Hold out a share of each class.

    Args:
        labels: (N,) class indices.
        val_fraction: share of each class to hold out, between 0 and 1.
        seed: of the random choice.
        class_names: for the notes.

    Returns:
        Sorted training indices, sorted validation indices, and notes for the user.

    Raises:
        UserError: nothing can be held out, as no class has two images.
    """
    generator = np.random.RandomState(seed)
    held_out, notes = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            notes.append(
                f"Class {class_names[label]!r} has a single image, which stays in training; it is not measured."
            )
            continue
        count = int(np.clip(np.floor(val_fraction * len(members) + 0.5), 1, len(members) - 1))
        held_out.append(train_test_split(members, test_size=count, random_state=generator)[1])
    if not held_out:
        raise UserError(
            "No validation images can be held out, as each class has a single image. Add images, or a val/ folder."
        )
    val = np.sort(np.concatenate(held_out)).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), val), val, notes


def random_subset(labels: Indices | None, size: int, total: int, seed: int) -> Indices:
    """A random subset in which each class keeps its share of the images, and at least one.

    Args:
        labels: (total,) class indices, or None for unlabelled images.
        size: of the subset.
        total: images to choose from.
        seed: of the random choice.

    Returns:
        (size,) sorted indices.

    Raises:
        UserError: `size` is smaller than the number of classes, or than 1.
    """
    generator = np.random.RandomState(seed)
    if size < 1:
        raise UserError(f"max_train_images is {size}; it must be at least 1.")
    if labels is None:
        return np.sort(generator.permutation(total)[:size]).astype(np.int64)
    classes, counts = np.unique(labels, return_counts=True)
    if size < len(classes):
        raise UserError(
            f"max_train_images is {size}, fewer than the {len(classes)} classes; give at least one image to each."
        )
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, proportional_counts(counts, size), strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def proportional_counts(counts: Indices, total: int) -> Indices:
    """Share `total` among classes in proportion to `counts` by largest remainders, with at least one for each.

    Args:
        counts: (K,) images of each class, all positive.
        total: between K and the sum of `counts`.

    Returns:
        (K,) integers that sum to `total`.
    """
    quotas = counts * (total / counts.sum())
    shares: Indices = np.maximum(np.floor(quotas).astype(np.int64), 1)
    while shares.sum() != total:
        # The smallest classes may have been given more than their quota; the most over-served class then pays.
        excess = shares - quotas
        if shares.sum() < total:
            shares[np.argmin(np.where(shares < counts, excess, np.inf))] += 1
        else:
            shares[np.argmax(np.where(shares > 1, excess, -np.inf))] -= 1
    return shares
