"""SP: images that are alike to the teacher are to be alike to the student.

Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682.

As the released codes for CIFAR-100 have it: the map of the last stage, before pooling, with weight 3000. Nothing is learnt beside
the student; widths and grids may differ, and the images compared are those of one device's batch. Inferred, not published:
plain transformers, of which it is the last block's map, and several pairs of levels, which add up.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.losses.base import DistillationLoss, Pairing
from limbeck.losses.kd import require_classifiers
from limbeck.losses.levels import require_levels
from limbeck.losses.pairing import named
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs, Request


def sp_loss(
    student_features: Float[Tensor, "B *student"], teacher_features: Float[Tensor, "B *teacher"]
) -> Float[Tensor, ""]:
    """Mean squared difference of the two models' similarities of every image with every image.

    With F (B, D) all of an image's features as one row, G = F·Fᵀ, and Ĝ the same with every row at length 1:

        L = ‖Ĝ_s - Ĝ_t‖² / B² (Frobenius norm)

    The scale of all features and any rotation of them do not count. A batch of one image costs nothing.

    Args:
        student_features: (B, ...), maps or vectors.
        teacher_features: (B, ...), of any other size; receives no gradient.

    Returns:
        A scalar in [0, 4/B], in at least float32.
    """
    with no_autocast(student_features):
        student, teacher = comparable(student_features, teacher_features)
        return F.mse_loss(_similarities(student), _similarities(teacher))


class SP(DistillationLoss):
    """Sum of `sp_loss` over pairs of levels, by default one: the last of both models.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        pairs: explicit (student level, teacher level) names.

    Raises:
        UserError: a model is a detector or offers no level, or `pairs` does not fit the models.
    """

    def __init__(
        self, student: ModelFacts, teacher: ModelFacts, *, pairs: Sequence[tuple[str, str]] | None = None
    ) -> None:
        super().__init__(student, teacher)
        require_classifiers("sp", student, teacher)
        require_levels("sp", student, teacher)
        last = ((student.levels[-1].name, teacher.levels[-1].name),)
        self.pairs = tuple(Pairing(*pair) for pair in (last if pairs is None else named(student, teacher, pairs)))
        self.student_request = Request(tuple(dict.fromkeys(pair.student for pair in self.pairs)))
        self.teacher_request = Request(tuple(dict.fromkeys(pair.teacher for pair in self.pairs)))

    @property
    def default_weight(self) -> float:
        """3000, as in the released codes."""
        return 3000.0

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """Sum of `sp_loss` over the pairs; the target is not read."""
        return torch.stack([sp_loss(student.maps[of.student], teacher.maps[of.teacher]) for of in self.pairs]).sum()


def _similarities(features: Float[Tensor, "B *features"]) -> Float[Tensor, "B B"]:
    rows = features.flatten(1)
    return F.normalize(rows @ rows.T, dim=1, eps=1e-12)
