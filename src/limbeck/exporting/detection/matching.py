"""Two answers of one detector to the same picture, detection by detection.

Rounding can swap detections whose scores are nearly equal, so each is compared with its counterpart, wherever that stands:
the nearest detection of its class that has no other counterpart yet, distances counted in boxes and scores.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.detection import Found


@dataclass(frozen=True)
class Pairs:
    """Counterparts in two answers.

    Attributes:
        scores: (P,) in the first answer.
        box_differences: (P,) the largest difference of a box's sides, in pixels.
        score_differences: (P,) absolute.
        mask_ious: (P,) intersection over union, 1 of two empty masks; None without masks.
        alone: scores of those in either answer that have no counterpart.
    """

    scores: Tensor
    box_differences: Tensor
    score_differences: Tensor
    mask_ious: Tensor | None
    alone: Tensor


def pair(expected: Found, found: Found, far: float) -> Pairs:
    """Find the counterparts, the surest detections' first.

    Args:
        expected, found: the answers, both in pixels of the same picture.
        far: detections whose boxes differ by more pixels than this are not each other's counterparts.
    """
    boxes = (expected.boxes[:, None] - found.boxes[None]).abs().amax(-1)
    scores = (expected.scores[:, None] - found.scores[None]).abs()
    possible = (expected.labels[:, None] == found.labels[None]) & (boxes <= far)
    distance = torch.where(possible, boxes / far + scores, torch.inf)
    ours: list[int] = []
    theirs: list[int] = []
    for row in expected.scores.argsort(descending=True, stable=True).tolist():
        if distance.shape[1] == 0 or torch.isinf(best := distance[row].min()) or torch.isnan(best):
            continue
        column = int(distance[row].argmin())
        ours.append(row)
        theirs.append(column)
        distance[:, column] = torch.inf
    alone = [_others(expected.scores, ours), _others(found.scores, theirs)]
    ious = None
    if expected.masks is not None and found.masks is not None:
        ious = torch.tensor([_iou(expected.masks[i], found.masks[j]) for i, j in zip(ours, theirs, strict=True)])
    return Pairs(expected.scores[ours], boxes[ours, theirs], scores[ours, theirs], ious, torch.cat(alone))


def _others(scores: Tensor, chosen: list[int]) -> Tensor:
    left = torch.ones(len(scores), dtype=torch.bool)
    left[chosen] = False
    return scores[left]


def _iou(one: Tensor, other: Tensor) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0
