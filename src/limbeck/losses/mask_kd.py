"""Distillation of mask queries: the teacher's objects, each a class and a soft mask, for Mask2Former, MaskFormer and EoMT.

No paper stands behind it as a whole. The matching, its costs and the importance-sampled points are those by which
Mask2Former is trained (Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022,
arXiv:2112.01527), with the teacher's queries in place of true objects. Dice of two soft masks is that of Wang et al.,
"Dice Semimetric Losses", MICCAI 2023, arXiv:2303.16296: the usual one is not smallest where the masks agree.

Inferred, not published: the class term and its temperature, weighting by the teacher's foreground score, leaving out
queries that are surely empty, and reading masks inside the images' own areas only.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.detection import DetectionOutputs, DetectorFacts, Predictions, ScoreKind, Size, Target
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.class_names import ClassMap, class_divergence, class_notes, foreground
from limbeck.losses.matching import Match, assign, class_scores
from limbeck.losses.precision import comparable, no_autocast
from limbeck.losses.query_loss import Layers, paired_layers, require_layers
from limbeck.outputs import ModelFacts, Request

POINTS = 12544
"""112 x 112, at which Mask2Former compares masks."""

CLASS_COST, BCE_COST, DICE_COST = 2.0, 5.0, 5.0
OVERSAMPLING = 3
IMPORTANT_SHARE = 0.75


@torch.no_grad()
def mask_query_matching(
    student_logits: Float[Tensor, "B Qs K"],
    student_masks: Float[Tensor, "B Qs h w"],
    teacher_logits: Float[Tensor, "B Qt K"],
    teacher_masks: Float[Tensor, "B Qt H W"],
    scores: ScoreKind,
    *,
    within: Float[Tensor, "B 2"] | None = None,
    num_points: int = POINTS,
    least: float = 0.0,
) -> Match:
    """A student's query for each of the teacher's, by the assignment of least total cost, image by image:

        cost = 2 · (-p_s(c)) + 5 · BCE(m_s, h) + 5 · Dice(m_s, h)

    with c the teacher's likeliest class and h its mask, positive where its logit is. The teacher's queries weigh as much
    as they are surely objects (see `matching.assign`), so that unsure ones never take a sure one's match.

    Args:
        student_logits: (B, Qs, K) of sigmoid heads, (B, Qs, K + 1) of softmax heads.
        student_masks: (B, Qs, h, w) logits.
        teacher_logits: as the student's head would say it; Qt need not be Qs.
        teacher_masks: (B, Qt, H, W) logits over the same pictures on any grid.
        scores: kind of both class logits.
        within: (B, 2), the own area's share of the padded picture's width and height; None is all of it.
        num_points: at which masks are compared, drawn at random; the student's cells where these are no more.
        least: the teacher's queries whose foreground score is below this get no match.
    """
    with no_autocast(student_masks):
        own, other = comparable(student_masks, teacher_masks)
        points = _cells(own, within) if own[0, 0].numel() <= num_points else _random(own, within, num_points)
        drawn, truth = _at(own, points), (_at(other, points) > 0).to(own.dtype)
        cross_entropy = F.softplus(drawn).mean(-1)[:, :, None] - drawn @ truth.mT / points.shape[1]
        drawn = drawn.sigmoid()
        total = drawn.sum(-1)[:, :, None] + truth.sum(-1)[:, None]
        dice = 1 - (2 * drawn @ truth.mT + 1) / (total + 1)
        best = class_scores(teacher_logits.to(own.dtype), scores).argmax(-1)
        index = best[:, None].expand(-1, student_logits.shape[1], -1)
        of_class = class_scores(student_logits.to(own.dtype), scores).gather(2, index)
        cost = BCE_COST * cross_entropy + DICE_COST * dice - CLASS_COST * of_class
        return assign(cost, foreground(teacher_logits.to(own.dtype), scores), least)


def mask_query_loss(
    student_logits: Float[Tensor, "M K"],
    student_masks: Float[Tensor, "M h w"],
    teacher_logits: Float[Tensor, "M K"],
    teacher_masks: Float[Tensor, "M H W"],
    weight: Float[Tensor, " M"],
    scores: ScoreKind,
    *,
    temperature: float = 2.0,
    class_weight: float = 1.0,
    bce_weight: float = 5.0,
    dice_weight: float = 5.0,
    within: Float[Tensor, "M 2"] | None = None,
    num_points: int = POINTS,
) -> Float[Tensor, ""]:
    """The mean over matched queries, weighted by w, of how far the student's class and mask are from the teacher's.

        L = Σ w · ( a · D(class) + b · mean_points KL( t ‖ s ) + c · Σ|s - t| / (Σs + Σt + 1) ) / max(Σ w, 1)

    with D = `class_divergence` at temperature τ, and s, t the masks' sigmoids at points. KL is binary cross-entropy with
    the teacher's mask as a soft label, less its smallest value. The last term is Dice, 1 - (2Σst + 1) / (Σs + Σt + 1),
    wherever the teacher is 0 or 1, and unlike Dice it is 0 where soft masks agree.

    Points are drawn as Mask2Former draws them: three times as many at random, of which those are taken where the student
    is least sure, three quarters of all; the rest at random. Where its mask has no more cells than that, all are taken.

    Args:
        student_logits: (M, K) of sigmoid heads, (M, K + 1) of softmax heads.
        student_masks: (M, h, w) logits.
        teacher_logits: like the student's, in the same kind; receives no gradient.
        teacher_masks: (M, H, W) logits over the same pictures on any grid; receives no gradient.
        weight: (M,) w, 0 or more.
        scores: kind of the class logits.
        temperature: τ > 0.
        class_weight, bce_weight, dice_weight: a, b and c.
        within: (M, 2), the own area's share of the padded picture's width and height; None is all of it.
        num_points: at which a pair of masks is compared.

    Returns:
        A scalar in at least float32; 0 where student and teacher agree, and of no pairs at all.
    """
    with no_autocast(student_masks):
        student_logits, teacher_logits = comparable(student_logits, teacher_logits)
        own, other = comparable(student_masks[:, None], teacher_masks[:, None])
        points = _important(own.detach(), within, num_points)
        drawn, truth = _at(own, points)[:, 0], _at(other, points)[:, 0]
        divergence = class_divergence(drawn[..., None], truth[..., None], "sigmoid").mean(-1)
        drawn, truth = drawn.sigmoid(), truth.sigmoid()
        dice = (drawn - truth).abs().sum(-1) / (drawn.sum(-1) + truth.sum(-1) + 1)
        distance = (
            class_weight * class_divergence(student_logits, teacher_logits, scores, temperature)
            + bce_weight * divergence
            + dice_weight * dice
        )
        weight = weight.detach().to(distance.dtype)
        return (weight * distance).sum() / weight.sum().clamp(min=1)


class MaskQueryKD(DistillationLoss):
    """`mask_query_loss` of matched queries, each weighted by the teacher's foreground score, summed over layers.

    For any two models whose queries have masks; they may differ in number, and masks in size.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        temperature: τ > 0 of the class scores.
        layers: `last`, only the last predictions; `all`, every student layer learns from the teacher's last;
            `aligned`, from the teacher's layer at the same relative depth.
        min_score: the teacher's queries below this foreground score teach nothing; in [0, 1).
        class_weight: of the class scores.
        bce_weight: of the masks' cross-entropy.
        dice_weight: of the masks' Dice.
        num_points: at which a pair of masks is compared, at least 4.

    Raises:
        UserError: an option is out of range, a model has no queries with masks, or no class name meets.
    """

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        temperature: float = 2.0,
        layers: Layers = "all",
        min_score: float = 0.05,
        class_weight: float = 1.0,
        bce_weight: float = 5.0,
        dice_weight: float = 5.0,
        num_points: int = POINTS,
    ) -> None:
        super().__init__(student, teacher)
        require_positive("mask_kd", temperature=temperature)
        require_layers("mask_kd", layers)
        if not 0 <= min_score < 1:
            raise UserError(f"mask_kd: min_score is {min_score}; it must be at least 0 and below 1.")
        if num_points < 4:
            raise UserError(f"mask_kd: num_points is {num_points}; it must be at least 4, and is usually {POINTS}.")
        own, other = _with_masks("student", student), _with_masks("teacher", teacher)
        self.classes = ClassMap(own, other)
        self.notes = class_notes("mask_kd", own, other)
        self.student_request = Request(predictions=True)
        self.teacher_request = Request(predictions=True)
        self.temperature = temperature
        self.layers: Layers = layers
        self.min_score = min_score
        self.weights = {"class_weight": class_weight, "bce_weight": bce_weight, "dice_weight": dice_weight}
        self.num_points = num_points

    def forward(
        self, student: DetectionOutputs, teacher: DetectionOutputs, target: Sequence[Target] | None = None
    ) -> Tensor:
        """Sum over the student's layers; the target is not read."""
        within = _own_shares(student.sizes, student.size, student.predictions[0].logits)
        terms = [
            self._layer(student.predictions[own], teacher.predictions[other], within)
            for own, other in paired_layers(len(student.predictions), len(teacher.predictions), self.layers)
        ]
        return torch.stack(terms).sum()

    def _layer(self, student: Predictions, teacher: Predictions, within: Tensor) -> Tensor:
        own_masks, other_masks = student.masks, teacher.masks
        assert own_masks is not None and other_masks is not None
        with no_autocast(own_masks):
            own_logits, other_logits = comparable(student.logits, teacher.logits)
            own_logits, other_logits = self.classes.of_student(own_logits), self.classes.of_teacher(other_logits)
            match = mask_query_matching(
                own_logits,
                own_masks,
                other_logits,
                other_masks,
                self.classes.scores,
                within=within,
                num_points=self.num_points,
                least=self.min_score,
            )
            own, other = (match.image, match.own), (match.image, match.other)
            return mask_query_loss(
                own_logits[own],
                own_masks[own],
                other_logits[other],
                other_masks[other],
                foreground(other_logits[other], self.classes.scores),
                self.classes.scores,
                temperature=self.temperature,
                within=within[match.image],
                num_points=self.num_points,
                **self.weights,
            )


def _with_masks(role: str, facts: ModelFacts) -> DetectorFacts:
    if not isinstance(facts, DetectorFacts):
        raise UserError(
            f"mask_kd compares the masks of two segmenters, but the {role} {facts.name} is a classifier. Use it with "
            "--task detection, or kd, nkd, reviewkd, ... for classifiers."
        )
    if facts.has_masks and facts.family in ("queries", "mask_queries"):
        return facts
    why, instead = {
        True: ("whose masks are drawn on boxes, not by queries", "roi_kd where both judge proposals, or pkd"),
        False: ("that predicts boxes only", "query_kd where both predict boxes by queries, or pkd"),
    }[facts.has_masks]
    raise UserError(
        f"mask_kd compares queries with masks (Mask2Former, MaskFormer, EoMT, RF-DETR-Seg), but the {role} {facts.name} is "
        f"a detector {why}. Use {instead} on feature maps."
    )


def _own_shares(sizes: Sequence[Size], padded: Size, like: Tensor) -> Tensor:
    """(B, 2), each image's own share of the padded width and height."""
    return torch.tensor([(width / padded[1], height / padded[0]) for height, width in sizes], device=like.device)


def _at(masks: Tensor, points: Tensor) -> Tensor:
    """(N, Q, h, w) masks at (N, P, 2) points, x and y from 0 to 1, interpolated -> (N, Q, P)."""
    grid = 2 * points[:, :, None] - 1
    # Half a cell at the edges lies outside the centres; zeros there would be masks that are half unsure.
    return F.grid_sample(masks, grid, align_corners=False, padding_mode="border").squeeze(3)


def _cells(masks: Tensor, within: Tensor | None) -> Tensor:
    """(N, h * w, 2), the centres of the cells, moved together into the images' own areas."""
    height, width = masks.shape[-2:]
    x = (torch.arange(width, device=masks.device, dtype=masks.dtype) + 0.5) / width
    y = (torch.arange(height, device=masks.device, dtype=masks.dtype) + 0.5) / height
    centres = torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)[None]
    return centres.expand(len(masks), -1, -1) if within is None else centres * within[:, None].to(masks.dtype)


def _random(masks: Tensor, within: Tensor | None, count: int) -> Tensor:
    """(N, count, 2), anywhere in the images' own areas."""
    points = torch.rand(len(masks), count, 2, device=masks.device, dtype=masks.dtype)
    return points if within is None else points * within[:, None].to(masks.dtype)


def _important(masks: Tensor, within: Tensor | None, count: int) -> Tensor:
    """(N, P, 2), P <= count: all cells, or points most of which lie where the (N, 1, h, w) logits are near 0."""
    if masks.shape[-2] * masks.shape[-1] <= count:
        return _cells(masks, within)
    many = _random(masks, within, OVERSAMPLING * count)
    kept = (-_at(masks, many)[:, 0].abs()).topk(int(IMPORTANT_SHARE * count), dim=1).indices
    important = many.gather(1, kept[:, :, None].expand(-1, -1, 2))
    return torch.cat([important, _random(masks, within, count - kept.shape[1])], 1)
