"""Detections of one detector in the data's classes, by name."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from limbeck.detection import name_pairs
from limbeck.errors import UserError
from limbeck.tasks.detection_scores import Detections


def in_our_classes(
    found: Sequence[Detections], theirs: tuple[str, ...], ours: tuple[str, ...]
) -> tuple[list[Detections], list[str]]:
    """Rename labels; detections of classes that are none of ours are left out.

    Args:
        found: with labels in the order of `theirs`.
        theirs: the detector's class names.
        ours: the class names wanted.

    Returns:
        The detections with labels in the order of `ours`, and notes on classes that one side lacks.

    Raises:
        UserError: no name is on both sides.
    """
    if theirs == ours:
        return list(found), []
    pairs = name_pairs(ours, theirs)
    if not pairs:
        raise UserError(
            f"The detector knows {_some(theirs)}; the data has {_some(ours)}: no class has the same name. Rename the "
            "classes of the data, or use a detector that was trained for them."
        )
    renaming = np.full(len(theirs), -1, dtype=np.int64)
    renaming[list(pairs.values())] = list(pairs)
    notes = []
    if missing := [name for place, name in enumerate(ours) if place not in pairs]:
        notes.append(f"it has no class for {_some(missing)}, so it says nothing about them.")
    if extra := len(theirs) - len(pairs):
        notes.append(f"{extra} of its classes are not in the data; what it finds of them is left out.")
    return [_renamed(image, renaming) for image in found], notes


def _renamed(image: Detections, renaming: NDArray[np.int64]) -> Detections:
    labels = renaming[np.asarray(image.labels, dtype=np.int64)]
    kept = np.flatnonzero(labels >= 0)
    rles = None if image.masks is None else image.rles()
    return Detections(
        boxes=image.boxes[kept],
        scores=image.scores[kept],
        labels=labels[kept],
        masks=None if rles is None else [rles[place] for place in kept],
    )


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
