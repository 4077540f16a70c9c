"""Which query of one set answers for which of another, by the assignment of least total cost (Hungarian algorithm).

Carion et al., "End-to-End Object Detection with Transformers" (DETR), ECCV 2020, arXiv:2005.12872: costs of class, L1
distance of boxes and generalised IoU. Used here between a student's queries and a teacher's, as in DETRDistill (Chang et
al., ICCV 2023, arXiv:2211.10156), and between queries and true objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from limbeck.detection import ScoreKind, Size, Target
from limbeck.losses.box_overlap import corner_form, giou, shares_of

CLASS_COST = 1.0
L1_COST = 5.0
GIOU_COST = 2.0


@dataclass
class Match:
    """Pairs of queries; each query is in at most one.

    Attributes:
        image: (M,) int64, rising, which of the batch.
        own: (M,) int64, the student's query.
        other: (M,) int64, the teacher's query, or the true object.
    """

    image: Tensor
    own: Tensor
    other: Tensor


@dataclass
class Truths:
    """The objects of a batch, padded to equal numbers.

    Attributes:
        labels: (B, G) int64, places among the shared classes; -1 of a class that is not shared, and of padding.
        boxes: (B, G, 4) centre x, centre y, width, height in shares.
        real: (B, G) float, 1 of an object and 0 of padding.
    """

    labels: Tensor
    boxes: Tensor
    real: Tensor


def class_scores(logits: Float[Tensor, "... classes"], scores: ScoreKind) -> Float[Tensor, "... K"]:
    """(..., K) class probabilities of (..., K) sigmoid or (..., K + 1) softmax logits."""
    return logits.sigmoid() if scores == "sigmoid" else F.softmax(logits, dim=-1)[..., :-1]


def pair_cost(
    own_scores: Float[Tensor, "B Q K"],
    own_boxes: Float[Tensor, "B Q 4"],
    labels: Int[Tensor, "B M"],
    boxes: Float[Tensor, "B M 4"],
) -> Float[Tensor, "B Q M"]:
    """What it costs that a query answers for an object.

    -p(label) + 5 · |box - box'|₁ + 2 · (1 - GIoU), as DETR weights them.

    Args:
        own_scores: (B, Q, K) class probabilities of the queries.
        own_boxes: (B, Q, 4) centre x, centre y, width, height.
        labels: (B, M) of the objects, 0 to K - 1; -1 where the class does not matter.
        boxes: (B, M, 4), as `own_boxes`.

    Returns:
        (B, Q, M).
    """
    index = labels.clamp(min=0)[:, None].expand(-1, own_scores.shape[1], -1)
    of_class = own_scores.gather(2, index) * (labels >= 0)[:, None]
    overlap = giou(corner_form(own_boxes)[:, :, None], corner_form(boxes)[:, None])
    return L1_COST * torch.cdist(own_boxes, boxes, p=1) + GIOU_COST * (1 - overlap) - CLASS_COST * of_class


def assign(cost: Float[Tensor, "B Q M"], weight: Float[Tensor, "B M"], least: float = 0.0) -> Match:
    """The pairs of least weighted cost, image by image.

    Minimised is the sum of weight · (cost - C) over the pairs, with C as far above the largest cost as the smallest is
    below: an object that weighs much gets its best query at the expense of those that weigh little, and where there are
    more objects than queries, those that weigh least go without.

    Args:
        cost: (B, Q, M), rectangular as it comes.
        weight: (B, M), 0 or more.
        least: objects that weigh less are left out.

    Returns:
        min(Q, number of objects that are not left out) pairs of each image.
    """
    costs = np.nan_to_num(cost.detach().float().cpu().numpy(), nan=1e6, posinf=1e6, neginf=-1e6)
    weights = np.nan_to_num(weight.detach().float().cpu().numpy())
    images, own, other = [], [], []
    for image, (matrix, weighed) in enumerate(zip(costs, weights, strict=True)):
        columns = np.flatnonzero(weighed >= least)
        if not len(columns) or not len(matrix):
            continue
        kept = matrix[:, columns]
        above = 2 * kept.max() - kept.min()
        rows, chosen = linear_sum_assignment((kept - above) * weighed[columns])
        images.append(np.full(len(rows), image))
        own.append(rows)
        other.append(columns[chosen])
    return Match(*(_index(parts, cost.device) for parts in (images, own, other)))


def match_queries(
    student_logits: Float[Tensor, "B Qs K"],
    student_boxes: Float[Tensor, "B Qs 4"],
    teacher_logits: Float[Tensor, "B Qt K"],
    teacher_boxes: Float[Tensor, "B Qt 4"],
    weight: Float[Tensor, "B Qt"],
    scores: ScoreKind,
    least: float = 0.0,
) -> Match:
    """A student's query for each of the teacher's, of whose classes the likeliest is looked for.

    Args:
        student_logits: (B, Qs, ...) of the student, on the shared classes.
        student_boxes: (B, Qs, 4) centre x, centre y, width, height in shares.
        teacher_logits: (B, Qt, ...) as the student's head would say it.
        teacher_boxes: (B, Qt, 4).
        weight: (B, Qt), how surely the teacher's query is an object.
        scores: kind of both logits.
        least: the teacher's queries that weigh less get none.
    """
    labels = class_scores(teacher_logits, scores).argmax(dim=-1)
    with torch.no_grad():
        cost = pair_cost(class_scores(student_logits, scores), student_boxes, labels, teacher_boxes)
    return assign(cost, weight, least)


def match_truths(
    logits: Float[Tensor, "B Q K"], boxes: Float[Tensor, "B Q 4"], truths: Truths, scores: ScoreKind
) -> Match:
    """A query for each true object, as DETR assigns them.

    Args:
        logits: (B, Q, ...) on the shared classes.
        boxes: (B, Q, 4) centre x, centre y, width, height in shares.
        truths: the objects.
        scores: kind of the logits.
    """
    with torch.no_grad():
        cost = pair_cost(class_scores(logits, scores), boxes, truths.labels, truths.boxes.to(boxes.dtype))
    return assign(cost, truths.real, least=0.5)


def padded_truths(targets: Sequence[Target], sizes: Sequence[Size], places: Int[Tensor, " K"]) -> Truths:
    """A batch's objects as equally many per image.

    Args:
        targets: one of each image.
        sizes: (height, width) of each image's own area.
        places: (K,) of each class the place among the shared ones, -1 where it has none.
    """
    most = max((len(target) for target in targets), default=0)
    boxes = torch.zeros(len(targets), most, 4, device=places.device)
    labels = torch.full((len(targets), most), -1, device=places.device)
    real = torch.zeros(len(targets), most, device=places.device)
    for row, (target, size) in enumerate(zip(targets, sizes, strict=True)):
        count = len(target)
        boxes[row, :count] = shares_of(target.boxes.to(boxes), size)
        labels[row, :count] = places[target.labels.to(places.device)]
        real[row, :count] = 1
    return Truths(labels, boxes, real)


def _index(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    joined = np.concatenate(parts) if parts else np.empty(0)
    return torch.from_numpy(joined.astype(np.int64)).to(device)
