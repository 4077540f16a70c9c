"""What the losses between two sets of queries share: which models they take, and how far two predictions are apart."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from limbeck.detection import DetectorFacts, Predictions, ScoreKind
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.box_overlap import corner_form, giou
from limbeck.losses.class_names import ClassMap, class_divergence, class_notes
from limbeck.losses.precision import comparable
from limbeck.outputs import ModelFacts, Request

Layers = Literal["last", "all", "aligned"]


class QueryLoss(DistillationLoss):
    """A loss between two detectors that predict a set of queries with boxes.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        method: its name, for messages.

    Attributes:
        classes: brings the logits of both to the classes that both know.

    Raises:
        UserError: a model is no detector with queries, or no class name meets.
    """

    def __init__(self, student: ModelFacts, teacher: ModelFacts, method: str) -> None:
        super().__init__(student, teacher)
        own, other = (
            _with_queries(method, role, facts) for role, facts in (("student", student), ("teacher", teacher))
        )
        self.classes = ClassMap(own, other)
        self.notes = class_notes(method, own, other)
        self.student_request = Request(predictions=True)
        self.teacher_request = Request(predictions=True)

    def logits(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits of both on the shared classes, in the student's kind, in at least float32."""
        own, other = comparable(student, teacher)
        return self.classes.of_student(own), self.classes.of_teacher(other)


def soft_prediction_loss(
    student_logits: Float[Tensor, "M K"],
    student_boxes: Float[Tensor, "M 4"],
    teacher_logits: Float[Tensor, "M K"],
    teacher_boxes: Float[Tensor, "M 4"],
    weight: Float[Tensor, " M"],
    scores: ScoreKind,
    *,
    temperature: float = 1.0,
    class_weight: float = 1.0,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
) -> Float[Tensor, ""]:
    """The mean over pairs of queries, weighted by w, of how far the student's prediction is from the teacher's.

        L = Σ w · ( a · D + b · |box_s - box_t|₁ + c · (1 - GIoU(box_s, box_t)) ) / max(Σ w, 1)

    with D = `class_divergence` at temperature τ. Few queries that the teacher believes little in thus count little, and
    are not blown up to a whole object.

    Args:
        student_logits: (M, K) of sigmoid heads, (M, K + 1) of softmax heads.
        student_boxes: (M, 4) centre x, centre y, width, height in shares.
        teacher_logits: like the student's, in the same kind; receives no gradient.
        teacher_boxes: (M, 4); receives no gradient.
        weight: (M,) w, 0 or more.
        scores: kind of the logits.
        temperature: τ > 0.
        class_weight: a.
        l1_weight: b.
        giou_weight: c.

    Returns:
        A scalar in at least float32; 0 where student and teacher agree, and of no pairs at all.
    """
    student_logits, teacher_logits = comparable(student_logits, teacher_logits)
    own, other = comparable(student_boxes, teacher_boxes)
    distance = (
        class_weight * class_divergence(student_logits, teacher_logits, scores, temperature)
        + l1_weight * (own - other).abs().sum(dim=-1)
        + giou_weight * (1 - giou(corner_form(own), corner_form(other)))
    )
    weight = weight.detach().to(distance.dtype)
    return (weight * distance).sum() / weight.sum().clamp(min=1)


def paired_layers(num_student: int, num_teacher: int, layers: Layers) -> tuple[tuple[int, int], ...]:
    """Which decoder layer of the student learns from which of the teacher.

    `last`: the last from the last. `all`: every one from the teacher's last. `aligned`: every one from the teacher's
    at the same relative depth, rounded up.
    """
    if layers == "last":
        return ((num_student - 1, num_teacher - 1),)
    if layers == "all":
        return tuple((index, num_teacher - 1) for index in range(num_student))
    return tuple((index, -(-(index + 1) * num_teacher // num_student) - 1) for index in range(num_student))


def boxes_of(predictions: Predictions) -> Tensor:
    """The boxes, which every detector of the family `queries` gives."""
    assert predictions.boxes is not None
    return predictions.boxes


def require_layers(method: str, layers: str) -> None:
    """Refuse an unknown choice of layers.

    Raises:
        UserError: it is none of `last`, `all`, `aligned`.
    """
    if layers not in ("last", "all", "aligned"):
        raise UserError(f"{method}: layers is {layers!r}; it must be 'last', 'all' or 'aligned'.")


def _with_queries(method: str, role: str, facts: ModelFacts) -> DetectorFacts:
    if not isinstance(facts, DetectorFacts):
        raise UserError(
            f"{method} compares what two detectors predict, but the {role} {facts.name} is a classifier. Use it with "
            "--task detection, or kd, nkd, reviewkd, ... for classifiers."
        )
    if facts.family == "queries":
        return facts
    instead = {
        "two_stage": "roi_kd where both judge proposals, or pkd, fgd or cwd on feature maps",
        "dense": "pkd, fgd or cwd on feature maps",
        "mask_queries": "mask_kd where both predict masks by queries, or pkd on feature maps",
    }[facts.family]
    raise UserError(
        f"{method} compares queries with boxes (DETR, YOLOS, RT-DETR, D-FINE, RF-DETR, ...), but the {role} {facts.name} "
        f"predicts otherwise. Use {instead}."
    )
