"""LD: localisation distillation for heads that say where a box's sides lie by distributions.

Zheng, Ye, Wang, Ren, Zuo, Hou, Cheng, "Localization Distillation for Dense Object Detection", CVPR 2022,
arXiv:2102.12252. Published for dense heads (GFL: 4 sides of 17 bins): temperature 10, weight 0.25 on the main region
(cells that answer for an object) and as much on the valuable localisation region (cells somewhat further away).

Inferred, not published: queries instead of cells, paired by matching, with the teacher's boxes in place of anchors; all
queries count as one level. The published code sums over the images of a batch of at most three; here it is their mean,
so that the weight does not depend on the batch size.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.detection import DetectionOutputs, Size, Target
from limbeck.errors import UserError
from limbeck.losses.box_overlap import corner_form, diou, iou
from limbeck.losses.class_names import foreground
from limbeck.losses.corner_kd import corner_divergence, corners_of, require_corners
from limbeck.losses.matching import match_queries, match_truths, padded_truths
from limbeck.losses.precision import comparable, no_autocast
from limbeck.losses.query_loss import QueryLoss, boxes_of
from limbeck.outputs import ModelFacts

NUM_CANDIDATES = 9
"""The boxes nearest to an object from whose overlaps its threshold is made (ATSS)."""

MAIN_DIVISOR = 4.0
VALUABLE_DIVISOR = 16.0


def ld_loss(
    student_corners: Float[Tensor, "M 4 bins"],
    teacher_corners: Float[Tensor, "M 4 bins"],
    weight: Float[Tensor, " M"],
    temperature: float = 10.0,
    divisor: float = MAIN_DIVISOR,
) -> Float[Tensor, ""]:
    """Weighted divergence of the sides' distributions.

        L = 1 / divisor · Σ w · Σ_sides mean_bins( τ² · t · log(t / s) )

    with s and t the softmaxes of the logits divided by τ. The mean over bins is published: the weight of the term belongs
    to the number of bins.

    Args:
        student_corners: (M, 4, bins) logits.
        teacher_corners: (M, 4, bins); receives no gradient.
        weight: (M,) w, 0 or more.
        temperature: τ > 0.
        divisor: 4 in the main region, 16 in the valuable localisation region.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_corners):
        divergence = corner_divergence(student_corners, teacher_corners, temperature) / student_corners.shape[-1]
        return (weight.detach().to(divergence.dtype)[:, None] * divergence).sum() / divisor


def valuable_region(
    boxes: Float[Tensor, "N 4"], truths: Float[Tensor, "G 4"], num_candidates: int = NUM_CANDIDATES
) -> Float[Tensor, " N"]:
    """How much each box tells about where some object lies, though it does not answer for it.

    An object's threshold is the mean plus the standard deviation of the IoUs of the `num_candidates` boxes whose centres
    are nearest to its own (Zhang et al., "ATSS", CVPR 2020, arXiv:1912.02424). A box is in the object's region if
    threshold / 4 <= DIoU < threshold.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels: anchors, or predictions.
        truths: (G, 4) of the objects, likewise.
        num_candidates: how many boxes make the threshold.

    Returns:
        (N,) the largest IoU of the box with an object in whose region it is; 0 of all others.
    """
    if not len(boxes) or not len(truths):
        return boxes.new_zeros(len(boxes))
    overlap = iou(boxes[:, None], truths[None])
    centres, true_centres = boxes[:, :2] + boxes[:, 2:], truths[:, :2] + truths[:, 2:]
    nearest = torch.cdist(centres, true_centres).topk(min(num_candidates, len(boxes)), dim=0, largest=False).indices
    candidates = overlap.gather(0, nearest)
    threshold = candidates.mean(dim=0) + candidates.std(dim=0, correction=min(1, len(candidates) - 1))
    distance = diou(boxes[:, None], truths[None])
    inside = (distance < threshold) & (distance >= threshold / 4)
    return (overlap * inside).amax(dim=1)


class LD(QueryLoss):
    """`ld_loss` of matched queries of the last decoder layers, over both regions.

    Main region: pairs whose teacher's query answers for a true object, weighted by the student's best score. Valuable
    localisation region: pairs by the `valuable_region` of the teacher's boxes. As published, a pair may be in both.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        temperature: τ > 0.
        valuable: weight of the valuable localisation region beside the main one; 0 leaves it out.

    Raises:
        UserError: an option is out of range, a model gives no distributions of box sides, their bins differ, or no class
            name meets.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(
        self, student: ModelFacts, teacher: ModelFacts, *, temperature: float = 10.0, valuable: float = 1.0
    ) -> None:
        super().__init__(student, teacher, "ld")
        require_positive("ld", temperature=temperature)
        if not valuable >= 0:
            raise UserError(f"ld: valuable is {valuable}; it must not be negative.")
        require_corners("ld", student, teacher)
        self.temperature = temperature
        self.valuable = valuable

    @property
    def default_weight(self) -> float:
        """0.25, as published for either region."""
        return 0.25

    def forward(
        self, student: DetectionOutputs, teacher: DetectionOutputs, target: Sequence[Target] | None = None
    ) -> Tensor:
        """The mean over the pictures.

        Raises:
            UserError: there is no target.
        """
        if target is None:
            raise UserError("ld reads the true boxes of every picture; use corner_kd or query_kd for unlabelled ones.")
        own_answer, other_answer = student.predictions[-1], teacher.predictions[-1]
        scores = self.classes.scores
        with no_autocast(own_answer.logits):
            own_logits, other_logits = self.logits(own_answer.logits, other_answer.logits)
            own_boxes, other_boxes = comparable(boxes_of(own_answer), boxes_of(other_answer))
            best = foreground(other_logits, scores)
            match = match_queries(own_logits, own_boxes, other_logits, other_boxes, best, scores)
            own, other = (match.image, match.own), (match.image, match.other)
            corners = corners_of(own_answer)[own], corners_of(other_answer)[other]

            truths = padded_truths(target, student.sizes, self.classes.places)
            found = match_truths(other_logits, other_boxes, truths, scores)
            main = torch.zeros_like(best)
            main[found.image, found.own] = 1
            weight = main[other] * foreground(own_logits.detach(), scores)[own]
            total = ld_loss(*corners, weight, self.temperature)
            if self.valuable:
                region = torch.stack(
                    [
                        valuable_region(_pixels(boxes, size), objects.boxes.to(boxes))
                        for boxes, size, objects in zip(other_boxes, student.sizes, target, strict=True)
                    ]
                )
                total = total + self.valuable * ld_loss(*corners, region[other], self.temperature, VALUABLE_DIVISOR)
            return total / len(target)


def _pixels(boxes: Float[Tensor, "Q 4"], size: Size) -> Float[Tensor, "Q 4"]:
    """(Q, 4) shares of an image of (height, width), as x1, y1, x2, y2 in pixels."""
    height, width = size
    return corner_form(boxes) * boxes.new_tensor([width, height, width, height])
