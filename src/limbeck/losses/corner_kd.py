"""Distillation of the distributions by which D-FINE says where a box's sides lie.

Peng, Li, Wu, Zhang, Sun, Wu, "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement", ICLR
2025, arXiv:2410.13842. Published is self-distillation, from the last decoder layer to the earlier ones of the same
model (decoupled distillation focal loss, DDF): temperature 5, weight 1.5.

Inferred, not published: from a teacher to a student, query by query after matching. All sizes share the bins, but each
model's distributions correct its own first box, so two of them mean the same side only as far as those boxes agree;
where the student's prediction is far from the object, the weight of the pair is small.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.detection import DetectionOutputs, DetectorFacts, Predictions, Target
from limbeck.errors import UserError
from limbeck.losses.box_overlap import corner_form, iou
from limbeck.losses.class_names import foreground
from limbeck.losses.matching import match_queries, match_truths, padded_truths
from limbeck.losses.precision import comparable, no_autocast
from limbeck.losses.query_loss import Layers, QueryLoss, boxes_of, paired_layers, require_layers
from limbeck.outputs import ModelFacts


def corner_divergence(
    student_corners: Float[Tensor, "*sides bins"], teacher_corners: Float[Tensor, "*sides bins"], temperature: float
) -> Float[Tensor, "*sides"]:
    """τ² · KL( softmax(t/τ) ‖ softmax(s/τ) ) of each side, summed over the bins.

    Args:
        student_corners: (..., bins) logits.
        teacher_corners: (..., bins); receives no gradient.
        temperature: τ > 0.

    Returns:
        (...) in at least float32.
    """
    student, teacher = comparable(student_corners, teacher_corners)
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    divergence: Tensor = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1)
    return divergence * temperature**2


def corner_kd_loss(
    student_corners: Float[Tensor, "M 4 bins"],
    teacher_corners: Float[Tensor, "M 4 bins"],
    weight: Float[Tensor, " M"],
    matched: Bool[Tensor, " M"],
    temperature: float = 5.0,
) -> Float[Tensor, ""]:
    """Weighted divergence of the sides' distributions, matched and unmatched queries apart.

    With d = w · `corner_divergence`, n_m and n_u the numbers of matched and unmatched sides:

        L = ( mean_matched(d) · √n_m + mean_unmatched(d) · √n_u ) / ( √n_m + √n_u )

    so that the few objects are not drowned by the many empty queries. (The published code scales both numbers by one
    factor, which cancels.)

    Args:
        student_corners: (M, 4, bins) logits.
        teacher_corners: (M, 4, bins); receives no gradient.
        weight: (M,) w, 0 or more.
        matched: (M,) the query answers for a true object.
        temperature: τ > 0.

    Returns:
        A scalar in at least float32; 0 of no queries at all.
    """
    with no_autocast(student_corners):
        divergence = corner_divergence(student_corners, teacher_corners, temperature)
        divergence = weight.detach().to(divergence.dtype)[:, None] * divergence
        parts, roots = [], []
        for part in (divergence[matched], divergence[~matched]):
            parts.append(part.sum() / max(part.numel(), 1))
            roots.append(math.sqrt(part.numel()))
        return (parts[0] * roots[0] + parts[1] * roots[1]) / max(sum(roots), 1.0)


class CornerKD(QueryLoss):
    """`corner_kd_loss` of matched queries, summed over the student's decoder layers.

    Student and teacher queries are matched by the last layers' predictions, since a query keeps its place from layer to
    layer. A student's query that answers for a true object weighs as much as its box overlaps the object (IoU); any
    other as much as its teacher's best score.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        temperature: τ > 0.
        layers: `last`, only the last decoder layers; `all`, every student layer learns from the teacher's last;
            `aligned`, from the teacher's layer at the same relative depth.

    Raises:
        UserError: an option is out of range, a model gives no distributions of box sides, their bins differ, or no class
            name meets.
    """

    def __init__(
        self, student: ModelFacts, teacher: ModelFacts, *, temperature: float = 5.0, layers: Layers = "all"
    ) -> None:
        super().__init__(student, teacher, "corner_kd")
        require_positive("corner_kd", temperature=temperature)
        require_layers("corner_kd", layers)
        require_corners("corner_kd", student, teacher)
        self.temperature = temperature
        self.layers: Layers = layers

    @property
    def default_weight(self) -> float:
        """1.5, as published for self-distillation."""
        return 1.5

    def forward(
        self, student: DetectionOutputs, teacher: DetectionOutputs, target: Sequence[Target] | None = None
    ) -> Tensor:
        """Sum over the student's layers; without a target no query counts as matched to an object."""
        last, answer = student.predictions[-1], teacher.predictions[-1]
        scores = self.classes.scores
        with no_autocast(last.logits):
            own_logits, other_logits = self.logits(last.logits, answer.logits)
            own_boxes, other_boxes = comparable(boxes_of(last), boxes_of(answer))
            best = foreground(other_logits, scores)
            match = match_queries(own_logits, own_boxes, other_logits, other_boxes, best, scores)
            own, other = (match.image, match.own), (match.image, match.other)
            terms = []
            for index, to in paired_layers(len(student.predictions), len(teacher.predictions), self.layers):
                layer = student.predictions[index]
                overlap, matched = self._overlap(layer, student, target)
                weight = torch.where(matched[own], overlap[own], best[other].to(overlap.dtype))
                corners = corners_of(layer)[own], corners_of(teacher.predictions[to])[other]
                terms.append(corner_kd_loss(*corners, weight, matched[own], self.temperature))
            return torch.stack(terms).sum()

    @torch.no_grad()
    def _overlap(
        self, layer: Predictions, student: DetectionOutputs, target: Sequence[Target] | None
    ) -> tuple[Float[Tensor, "B Q"], Bool[Tensor, "B Q"]]:
        """How far the box of each query overlaps the object that it answers for, and whether there is one."""
        boxes, logits = comparable(boxes_of(layer), layer.logits)
        overlap = boxes.new_zeros(boxes.shape[:2])
        matched = torch.zeros_like(overlap, dtype=torch.bool)
        if target is not None:
            truths = padded_truths(target, student.sizes, self.classes.places)
            match = match_truths(self.classes.of_student(logits), boxes, truths, self.classes.scores)
            own = (match.image, match.own)
            overlap[own] = iou(corner_form(boxes[own]), corner_form(truths.boxes[match.image, match.other].to(boxes)))
            matched[own] = True
        return overlap, matched


def require_corners(method: str, student: ModelFacts, teacher: ModelFacts) -> None:
    """Refuse models whose box sides are not distributions over the same bins.

    Raises:
        UserError: a model gives none, or the bins differ in number or meaning.
    """
    assert isinstance(student, DetectorFacts) and isinstance(teacher, DetectorFacts)
    for role, facts in (("student", student), ("teacher", teacher)):
        if facts.corner_bins is None:
            raise UserError(
                f"{method} compares distributions of box sides, but the {role} {facts.name} gives one number a side. Both "
                "must be D-FINE or alike; query_kd works for any models with queries."
            )
    if (student.corner_bins, student.corner_scale) != (teacher.corner_bins, teacher.corner_scale):
        raise UserError(
            f"{method} compares bin by bin, but the teacher {teacher.name} has {teacher.corner_bins} bins of scale "
            f"{teacher.corner_scale} and the student {student.name} has {student.corner_bins} of {student.corner_scale}. Use "
            "query_kd, or build the student with the teacher's scale."
        )


def corners_of(predictions: Predictions) -> Tensor:
    """The sides' distributions, which the facts promised."""
    assert predictions.corners is not None
    return predictions.corners
