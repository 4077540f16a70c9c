"""Region distillation: two-stage detectors' heads judge the same regions, the student's, and the student learns to agree.

After Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS
2017, which distils the heads of two-stage detectors, with other losses on classes and boxes.

The regions are those that the student was trained on in this step, cut out of each network's own maps: proposals of two
networks do not correspond, and labels assigned to the one say nothing about the other. Inferred, not published: the
equal weights of the three terms, boxes taught for the teacher's likeliest class only, masks, and detectors whose classes
agree in part.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.detection import DetectionOutputs, DetectorFacts, Regions, Target
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.box_overlap import iou
from limbeck.losses.class_names import ClassMap, class_divergence, class_notes
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Request

TORCHVISION_BETA = 1 / 9


def region_class_loss(
    student_logits: Float[Tensor, "N K"], teacher_logits: Float[Tensor, "N K"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """L = τ²/N · Σ KL( softmax(t/τ) ‖ softmax(s/τ) )

    Args:
        student_logits: (N, K + 1), background last.
        teacher_logits: (N, K + 1) of the same classes; receives no gradient.
        temperature: τ > 0.

    Returns:
        A scalar in at least float32; 0 where they agree, and of no regions at all.
    """
    with no_autocast(student_logits):
        student, teacher = comparable(student_logits, teacher_logits)
        return class_divergence(student, teacher, "softmax", temperature).sum() / max(1, len(student))


def region_box_loss(
    student_deltas: Float[Tensor, "N K 4"],
    teacher_deltas: Float[Tensor, "N K 4"],
    teacher_logits: Float[Tensor, "N L"],
    beta: float = TORCHVISION_BETA,
) -> Float[Tensor, ""]:
    """Smooth L1 between the corrections of the teacher's likeliest class c, weighted by its probability p:

        L = 1/N · Σ p_c · smooth_L1(s_c - t_c),   summed over the four sides

    with smooth_L1(d) = d²/(2·beta) where |d| < beta, |d| - beta/2 elsewhere. Regions that the teacher takes for
    background weigh next to nothing, as in the supervised loss, which is divided by all regions too.

    Args:
        student_deltas: (N, K, 4) in torchvision's coding.
        teacher_deltas: (N, K, 4) of the same classes; receives no gradient.
        teacher_logits: (N, K + 1), background last.
        beta: where the square ends; 0 is plain L1.

    Returns:
        A scalar in at least float32; 0 of no regions at all.
    """
    with no_autocast(student_deltas):
        student, teacher = comparable(student_deltas, teacher_deltas)
        probability, top = F.softmax(teacher_logits.detach().to(teacher.dtype), dim=1)[:, :-1].max(dim=1)
        rows = torch.arange(len(top), device=top.device)
        distance = F.smooth_l1_loss(student[rows, top], teacher[rows, top], beta=beta, reduction="none").sum(dim=1)
        return (probability * distance).sum() / max(1, len(student))


def region_mask_loss(student_masks: Float[Tensor, "M h w"], teacher_masks: Float[Tensor, "M h w"]) -> Float[Tensor, ""]:
    """Binary cross-entropy with the teacher's mask as a soft label, less its smallest value; mean over all cells:

        L = mean KL( σ(t) ‖ σ(s) )

    Args:
        student_masks: (M, h, w) logits.
        teacher_masks: (M, h, w) logits; receives no gradient.

    Returns:
        A scalar in at least float32; 0 where they agree, and of no masks at all.
    """
    with no_autocast(student_masks):
        student, teacher = comparable(student_masks, teacher_masks)
        cells = class_divergence(student[..., None], teacher[..., None], "sigmoid")
        return cells.sum() / max(1, cells.numel())


class RoIKD(DistillationLoss):
    """Class, box and mask terms of two two-stage detectors on the student's regions, on the classes that both know.

    Classes meet by name; those that only one detector knows count as background. Masks are compared on the boxes on which
    the student learns masks, each for its true class; pictures without targets have none.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        classes: weight of `region_class_loss`; a term of weight 0 is not computed.
        boxes: weight of `region_box_loss`.
        masks: weight of `region_mask_loss`; not used unless both detectors predict masks.
        temperature: τ > 0 of the class logits.
        beta: where the square of the box term ends, at least 0.

    Raises:
        UserError: a detector does not judge regions, no class name meets, or an option is out of range.
    """

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        classes: float = 1.0,
        boxes: float = 1.0,
        masks: float = 1.0,
        temperature: float = 1.0,
        beta: float = TORCHVISION_BETA,
    ) -> None:
        super().__init__(student, teacher)
        own, other = _two_stage("student", student), _two_stage("teacher", teacher)
        both_have_masks = own.has_masks and other.has_masks
        self.weights = {"classes": classes, "boxes": boxes, "masks": masks if both_have_masks else 0.0}
        _check_options(self.weights, temperature, beta)
        self.temperature, self.beta = temperature, beta
        self.shared = ClassMap(own, other)
        self.student_request = Request(regions=True)
        self.teacher_request = Request(read_regions=True)
        self.notes = class_notes("roi_kd", own, other)
        if own.has_masks and not both_have_masks:
            self.notes += (f"roi_kd: the teacher {teacher.name} predicts no masks; it teaches classes and boxes only.",)

    def forward(
        self, student: DetectionOutputs, teacher: DetectionOutputs, target: Sequence[Target] | None = None
    ) -> Tensor:
        """The weighted sum of the three terms; of the targets only the classes of the masks are read."""
        own = student.regions
        assert own is not None
        assert teacher.read_regions is not None
        with torch.no_grad():
            other = teacher.read_regions(own)
        student_logits, teacher_logits = comparable(own.logits, other.logits)
        total = student_logits.new_zeros(())
        student_logits = self.shared.of_student(student_logits)
        teacher_logits = self.shared.of_teacher(teacher_logits)
        if self.weights["classes"]:
            total = total + self.weights["classes"] * region_class_loss(
                student_logits, teacher_logits, self.temperature
            )
        if self.weights["boxes"]:
            student_deltas = own.deltas.index_select(1, self.shared.student_indices)
            teacher_deltas = other.deltas.index_select(1, self.shared.teacher_indices)
            total = total + self.weights["boxes"] * region_box_loss(
                student_deltas, teacher_deltas, teacher_logits, self.beta
            )
        if self.weights["masks"] and own.mask_logits is not None and target is not None:
            total = total + self.weights["masks"] * self._mask_loss(own, other, target)
        return total

    def _mask_loss(self, own: Regions, other: Regions, target: Sequence[Target]) -> Tensor:
        assert own.mask_boxes is not None
        assert own.mask_logits is not None
        assert other.mask_logits is not None
        labels = torch.cat([_nearest_label(boxes, true) for boxes, true in zip(own.mask_boxes, target, strict=True)])
        places = torch.where(labels < 0, labels, self.shared.labels(labels.clamp(min=0)))
        (rows,) = torch.where(places >= 0)
        places = places[rows]
        student_masks = own.mask_logits[rows, self.shared.student_indices[places]]
        teacher_masks = other.mask_logits[rows, self.shared.teacher_indices[places]]
        size = student_masks.shape[-2:]
        if len(rows) and teacher_masks.shape[-2:] != size:
            teacher_masks = F.interpolate(teacher_masks[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return region_mask_loss(student_masks, teacher_masks.reshape(-1, *size))


def _nearest_label(boxes: Float[Tensor, "m 4"], target: Target) -> Int[Tensor, " m"]:
    """The label of the true box that overlaps each box most; -1 where there is none."""
    if not len(target) or not len(boxes):
        return torch.full((len(boxes),), -1, device=boxes.device)
    overlap = iou(boxes[:, None].float(), target.boxes[None].to(boxes.device))
    return target.labels.to(boxes.device)[overlap.argmax(dim=1)]


def _two_stage(role: str, facts: ModelFacts) -> DetectorFacts:
    if isinstance(facts, DetectorFacts) and facts.family == "two_stage":
        return facts
    raise UserError(
        f"roi_kd compares how two-stage detectors (Faster R-CNN, Mask R-CNN) judge regions, but the {role} {facts.name} "
        "judges none. Use pkd, fgd or another method on feature maps."
    )


def _check_options(weights: dict[str, float], temperature: float, beta: float) -> None:
    for name, weight in weights.items():
        if not weight >= 0:
            raise UserError(f"roi_kd: {name} is {weight}; a weight must not be negative.")
    if not any(weights.values()):
        raise UserError("roi_kd: every term that these two detectors allow has weight 0, so nothing would be learnt.")
    if not temperature > 0:
        raise UserError(f"roi_kd: temperature is {temperature}; it must be above 0.")
    if not beta >= 0:
        raise UserError(f"roi_kd: beta is {beta}; it must not be negative.")
