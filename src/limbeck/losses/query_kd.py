"""Distillation of a set of predictions, after matching the student's queries with the teacher's.

The first of the three parts of DETRDistill: Chang, Wang, Xu, Chen, Yang, Zhao, "DETRDistill: A Universal Knowledge
Distillation Framework for DETR-families", ICCV 2023, arXiv:2211.10156. Published: classes by binary cross-entropy with
soft labels, weight 1; L1 5; GIoU 2.

Inferred, not published: softmax heads by KL, conversion between kinds of scores and between label maps, a teacher's
last layer for all of the student's (published is layer by layer, `layers="aligned"`), and leaving out the teacher's
queries that are surely empty: by weight these hardly count, but matching 300 queries with 300 takes tens of milliseconds
a picture, with 50 a fraction of one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.detection import DetectionOutputs, Target
from limbeck.errors import UserError
from limbeck.losses.class_names import foreground
from limbeck.losses.matching import match_queries
from limbeck.losses.precision import comparable, no_autocast
from limbeck.losses.query_loss import (
    Layers,
    QueryLoss,
    boxes_of,
    paired_layers,
    require_layers,
    soft_prediction_loss,
)
from limbeck.outputs import ModelFacts


class QueryKD(QueryLoss):
    """`soft_prediction_loss` of matched queries, each weighted by the teacher's foreground score, summed over layers.

    For models whose queries have nothing to do with each other and may differ in number: DETR, YOLOS, RT-DETR, D-FINE,
    RF-DETR, ... in any combination.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        temperature: τ > 0 of the class scores.
        layers: `last`, only the last decoder layers; `all`, every student layer learns from the teacher's last;
            `aligned`, from the teacher's layer at the same relative depth.
        min_score: the teacher's queries below this foreground score teach nothing; in [0, 1).
        class_weight: of the class scores.
        l1_weight: of the boxes' L1 distance.
        giou_weight: of the boxes' generalised IoU.

    Raises:
        UserError: an option is out of range, a model has no queries with boxes, or no class name meets.
    """

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        temperature: float = 1.0,
        layers: Layers = "all",
        min_score: float = 0.05,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ) -> None:
        super().__init__(student, teacher, "query_kd")
        require_positive("query_kd", temperature=temperature)
        require_layers("query_kd", layers)
        if not 0 <= min_score < 1:
            raise UserError(f"query_kd: min_score is {min_score}; it must be at least 0 and below 1.")
        self.temperature = temperature
        self.layers: Layers = layers
        self.min_score = min_score
        self.weights = {"class_weight": class_weight, "l1_weight": l1_weight, "giou_weight": giou_weight}

    def forward(
        self, student: DetectionOutputs, teacher: DetectionOutputs, target: Sequence[Target] | None = None
    ) -> Tensor:
        """Sum over the student's layers; the target is not read."""
        pairs = [
            (student.predictions[own], teacher.predictions[other])
            for own, other in paired_layers(len(student.predictions), len(teacher.predictions), self.layers)
        ]
        # The layers stand one behind the other in the batch, so that the costs leave the device once.
        own_logits, other_logits = (torch.cat([pair[side].logits for pair in pairs]) for side in (0, 1))
        own_boxes, other_boxes = (torch.cat([boxes_of(pair[side]) for pair in pairs]) for side in (0, 1))
        with no_autocast(own_logits):
            own_logits, other_logits = self.logits(own_logits, other_logits)
            own_boxes, other_boxes = comparable(own_boxes, other_boxes)
            weight = foreground(other_logits, self.classes.scores)
            match = match_queries(
                own_logits, own_boxes, other_logits, other_boxes, weight, self.classes.scores, self.min_score
            )
            own, other = (match.image, match.own), (match.image, match.other)
            mean = soft_prediction_loss(
                own_logits[own],
                own_boxes[own],
                other_logits[other],
                other_boxes[other],
                weight[other],
                self.classes.scores,
                temperature=self.temperature,
                **self.weights,
            )
            return len(pairs) * mean
