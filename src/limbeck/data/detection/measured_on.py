"""Scenes to measure on that were named apart from those to learn from: the same classes, and no image in both."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limbeck.data.detection.base import Objects, SceneSource
from limbeck.errors import UserError


class Relabelled(SceneSource):
    """Scenes whose classes are counted in another order.

    Args:
        source: the scenes.
        class_names: in the new order.
        labels: (K,) new label of each old one.
    """

    def __init__(self, source: SceneSource, class_names: tuple[str, ...], labels: NDArray[np.int64]) -> None:
        self.source, self.class_names, self._labels = source, class_names, labels
        self.has_masks = source.has_masks

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Image.Image:
        """As in the source."""
        return self.source.read(index)

    def objects(self, index: int) -> Objects:
        """Those of the source, with the new labels."""
        old = self.source.objects(index)
        return Objects(old.boxes, self._labels[old.labels], old.is_crowd, old.area, old.segments, old.scores)

    def image_id(self, index: int) -> int | str:
        """As in the source."""
        return self.source.image_id(index)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width), as in the source."""
        return self.source.size(index)

    def describe(self, index: int) -> str:
        """As in the source."""
        return self.source.describe(index)


def relabelled(source: SceneSource, class_names: tuple[str, ...], learned: str, name: str) -> SceneSource:
    """Scenes with their classes in the order of those that are learned; names meet whatever their capitals and spaces.

    Args:
        source: to measure on.
        class_names: of what is learned.
        learned, name: of both data, for messages.

    Raises:
        UserError: they have other classes.
    """
    from limbeck.detection import name_pairs  # which imports torch; naming and counting scenes does not need it

    pairs = name_pairs(source.class_names, class_names)
    missing = [one for label, one in enumerate(class_names) if label not in pairs.values()]
    added = [one for label, one in enumerate(source.class_names) if label not in pairs]
    if missing or added:
        raise UserError(
            f"The scenes to measure on, {name}, have other classes than {learned}: missing {_some(missing)}, added "
            f"{_some(added)}. Give scenes of the same classes with --val_data, or rename their classes."
        )
    return Relabelled(source, class_names, np.array([pairs[label] for label in range(len(pairs))], dtype=np.int64))


def require_unseen(train: SceneSource, val: SceneSource, name: str) -> None:
    """Refuse to measure on images that are learned from.

    Raises:
        UserError: with their number and the first of them.
    """
    learned = {_place(train, index) for index in range(len(train))}
    both = [index for index in range(len(val)) if _place(val, index) in learned]
    if both:
        raise UserError(
            f"{len(both)} of {len(val)} images to measure on, {name}, are also learned from; the first is "
            f"{val.describe(both[0])}. Name images that are not in the data; or leave --val_data out, so that images of the "
            "data are held out."
        )


def _place(source: SceneSource, index: int) -> str:
    return os.path.abspath(source.describe(index))


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (" ..." if names[most:] else "") if names else "none"
