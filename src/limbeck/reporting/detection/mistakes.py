"""Which detections are right, and what is wrong with the others.

A detection finds an object as COCO's evaluation has it at IoU 0.50: detections of an image take their turn by falling
score, and each takes the free object of its class that it overlaps most. Detections that lie in a crowd are neither
right nor wrong. What is counted as a mistake depends on a threshold of the score: `operating_point` is the one at which
precision and recall balance best.

The kinds of false positives are those of D. Bolya et al., TIDE: A General Toolbox for Identifying Object Detection
Errors, ECCV 2020, arXiv 2008.08115, section 3, with its thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FREE, CROWD = -1, -2
FOUND_IOU, NEAR_IOU = 0.5, 0.1

POOR_OVERLAP, WRONG_CLASS, DUPLICATE = "poor overlap", "wrong class", "duplicate"
BACKGROUND, BOTH = "background", "wrong class, poor overlap"
FALSE_KINDS = (BACKGROUND, WRONG_CLASS, POOR_OVERLAP, DUPLICATE, BOTH)

TOO_UNSURE, MISTAKEN, MISPLACED, UNSEEN = "below the threshold", "taken for another class", "poor overlap", "not seen"
MISS_KINDS = (UNSEEN, TOO_UNSURE, MISPLACED, MISTAKEN)


@dataclass(frozen=True)
class Truth:
    """The annotated objects of one image: boxes (M, 4) x1, y1, x2, y2, labels (M,), crowd (M,) bool."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class Judged:
    """A model's detections in one image, best first, and what each of them finds.

    Attributes:
        boxes: (N, 4), x1, y1, x2, y2.
        labels: (N,).
        scores: (N,), falling.
        found: (N,) the row of the object that each finds, `FREE` for none, `CROWD` for those that do not count.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    found: NDArray[np.int64]

    def shown(self, threshold: float) -> int:
        """How many have at least this score."""
        return int((self.scores >= threshold).sum())


@dataclass(frozen=True)
class FalsePositive:
    """A detection of at least the threshold's score that finds nothing.

    Attributes:
        image: number of the image.
        row: of the detection in its image.
        kind: one of `FALSE_KINDS`.
        score: of the detection.
        overlap: its IoU with the object that explains the mistake; in the background, the largest with any object.
        object: the row of the object that explains the mistake; None in the background.
    """

    image: int
    row: int
    kind: str
    score: float
    overlap: float
    object: int | None


@dataclass(frozen=True)
class Miss:
    """An object that no detection of at least the threshold's score finds.

    Attributes:
        image: number of the image.
        row: of the object in its image.
        kind: one of `MISS_KINDS`.
        area: of its box, in pixels.
        detection: the row of the detection that explains the miss; None where there is none.
    """

    image: int
    row: int
    kind: str
    area: float
    detection: int | None


def judge(truth: Truth, boxes: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any]) -> Judged:
    """Which object each detection finds.

    Args:
        truth: the annotated objects.
        boxes: (N, 4), x1, y1, x2, y2 in pixels.
        labels: (N,).
        scores: (N,), in any order.
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    boxes, labels = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)[order], np.asarray(labels, dtype=np.int64)[order]
    found = np.full(len(order), FREE, dtype=np.int64)
    overlaps = overlap(boxes, truth.boxes, truth.crowd)
    overlaps[labels[:, None] != truth.labels[None, :]] = 0
    taken = np.zeros(len(truth.labels), dtype=bool)
    real, crowd = ~truth.crowd, truth.crowd
    for row in np.flatnonzero((overlaps >= FOUND_IOU).any(axis=1)):
        free = np.where(real & ~taken, overlaps[row], 0)
        # The last of equals, as COCO's evaluation takes it.
        best = len(free) - 1 - int(free[::-1].argmax())
        if free[best] >= FOUND_IOU:
            found[row], taken[best] = best, True
        elif crowd.any() and overlaps[row, crowd].max() >= FOUND_IOU:
            found[row] = CROWD
    return Judged(boxes, labels, np.asarray(scores, dtype=np.float32)[order], found)


def overlap(boxes: NDArray[Any], others: NDArray[Any], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union of (N, 4) with (M, 4) boxes, (N, M); over the first one's own area for crowds."""
    one, two = np.asarray(boxes, dtype=np.float64)[:, None], np.asarray(others, dtype=np.float64)[None]
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    own = np.clip(one[..., 2:] - one[..., :2], 0, None).prod(axis=-1)
    joined = np.where(crowd[None], own, own + (two[..., 2:] - two[..., :2]).prod(axis=-1) - shared)
    shares: NDArray[np.float64] = np.divide(shared, joined, out=np.zeros_like(shared), where=joined > 0)
    return shares


def operating_point(truths: Sequence[Truth], judged: Sequence[Judged]) -> float:
    """The score from which on a model's detections have the highest F1 at IoU 0.50, all images and classes together.

    Where nothing is found at any score, as many detections pass as there are objects.
    """
    objects = sum(int((~truth.crowd).sum()) for truth in truths)
    scores = np.concatenate([found.scores for found in judged])
    rows = np.concatenate([found.found for found in judged])
    scores, rows = scores[rows != CROWD], rows[rows != CROWD]
    if not len(scores):
        return 0.5
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], (rows[order] >= 0).cumsum()
    if not right[-1]:
        return float(scores[min(max(objects, 1), len(scores)) - 1])
    f1 = 2 * right / (np.arange(1, len(scores) + 1) + objects)
    # Detections of one score pass together.
    last = np.append(scores[1:] != scores[:-1], True)
    return float(scores[np.where(last, f1, -1).argmax()])


def false_positives(image: int, truth: Truth, judged: Judged, threshold: float) -> list[FalsePositive]:
    """The false positives of one image, surest first."""
    rows = np.flatnonzero((judged.found == FREE) & (judged.scores >= threshold))
    real = np.flatnonzero(~truth.crowd)
    overlaps = overlap(judged.boxes[rows], truth.boxes[real], truth.crowd[real])
    same = judged.labels[rows, None] == truth.labels[real][None]
    mistakes = []
    for row, shares, own in zip(rows, overlaps, same, strict=True):
        kind, place = _false_kind(shares, own)
        share = float(shares.max(initial=0.0) if place is None else shares[place])
        explained = None if place is None else int(real[place])
        mistakes.append(FalsePositive(image, int(row), kind, float(judged.scores[row]), share, explained))
    return mistakes


def misses(image: int, truth: Truth, judged: Judged, threshold: float) -> list[Miss]:
    """The missed objects of one image, largest first."""
    shown = judged.shown(threshold)
    missed = np.setdiff1d(np.flatnonzero(~truth.crowd), judged.found[:shown])
    overlaps = overlap(judged.boxes, truth.boxes, np.zeros(len(truth.labels), dtype=bool))
    found = []
    for row in missed:
        shares, same = overlaps[:, row], judged.labels == truth.labels[row]
        kind, detection = _miss_kind(shares, same, judged.found == row, shown)
        x1, y1, x2, y2 = (float(value) for value in truth.boxes[row])
        found.append(Miss(image, int(row), kind, (x2 - x1) * (y2 - y1), detection))
    return sorted(found, key=lambda miss: -miss.area)


def _false_kind(shares: NDArray[np.float64], same: NDArray[np.bool_]) -> tuple[str, int | None]:
    """The kind, and which object explains it; the order of the questions is TIDE's."""
    own, other = np.where(same, shares, 0), np.where(same, 0, shares)
    if NEAR_IOU <= own.max(initial=0.0) < FOUND_IOU:
        return POOR_OVERLAP, int(own.argmax())
    if other.max(initial=0.0) >= FOUND_IOU:
        return WRONG_CLASS, int(other.argmax())
    if own.max(initial=0.0) >= FOUND_IOU:
        return DUPLICATE, int(own.argmax())
    if shares.max(initial=0.0) >= NEAR_IOU:
        return BOTH, int(shares.argmax())
    return BACKGROUND, None


def _miss_kind(
    shares: NDArray[np.float64], same: NDArray[np.bool_], finds: NDArray[np.bool_], shown: int
) -> tuple[str, int | None]:
    """The kind, and which detection explains it: one that is shown and wrong before one that is right and unsure."""
    visible = np.arange(len(shares)) < shown
    near = np.where(visible & same, shares, 0)
    other = np.where(visible & ~same, shares, 0)
    if other.max(initial=0.0) >= FOUND_IOU:
        return MISTAKEN, int(other.argmax())
    if finds.any():
        return TOO_UNSURE, int(finds.argmax())
    if NEAR_IOU <= near.max(initial=0.0) < FOUND_IOU:
        return MISPLACED, int(near.argmax())
    return UNSEEN, None
