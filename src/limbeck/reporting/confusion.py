"""Which classes are mistaken for which."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ConfusedPair:
    """One kind of mistake.

    Attributes:
        truth, predicted: class indices, never equal.
        count: images of `truth` that were called `predicted`.
        share: `count` over all images of `truth`.
    """

    truth: int
    predicted: int
    count: int
    share: float


def confusion_matrix(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int
) -> NDArray[np.int64]:
    """Counts (K, K) of images by true class (rows) and predicted class (columns).

    Args:
        labels, predicted: (N,) class indices in [0, num_classes).
        num_classes: K.
    """
    cells = np.asarray(labels, dtype=np.int64) * num_classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def confusion_rows(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Rows of the confusion matrix for a few classes, without building all K x K cells.

    Args:
        labels, predicted: (N,) class indices.
        classes: (C,) distinct class indices.

    Returns:
        (C, C + 1) counts; the last column holds the images that were called anything outside `classes`.
    """
    place = {int(c): i for i, c in enumerate(classes)}
    rows = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    for truth, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        if truth in place:
            rows[place[truth], place.get(guess, len(classes))] += 1
    return rows


def recall(labels: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int) -> NDArray[np.float64]:
    """Accuracy within each true class, (K,); NaN for classes without an image."""
    images = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[labels == predicted], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return np.asarray(right / images)


def worst_classes(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int, count: int
) -> NDArray[np.int64]:
    """The `count` classes of lowest recall among those with images, worst first; ties in class order."""
    values = recall(labels, predicted, num_classes)
    order = np.argsort(values, kind="stable")
    return order[: min(count, int(np.isfinite(values).sum()))]


def most_confused(labels: NDArray[np.integer], predicted: NDArray[np.integer], count: int) -> list[ConfusedPair]:
    """The most frequent mistakes, most images first; ties by share, then in class order."""
    wrong = labels != predicted
    if not wrong.any():
        return []
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]]), axis=1, return_counts=True)
    images = np.bincount(labels)
    found = [
        ConfusedPair(int(truth), int(guess), int(n), float(n / images[truth]))
        for truth, guess, n in zip(pairs[0], pairs[1], counts, strict=True)
    ]
    return sorted(found, key=lambda pair: (-pair.count, -pair.share, pair.truth, pair.predicted))[:count]
