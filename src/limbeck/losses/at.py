"""Attention transfer: the teacher's map of where its activations are strong, level by level.

Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928.

Published for stages of convolutional networks: the power 2, all stages, and weight 1000 on the mean over cells. Nothing is
learnt beside the student, and widths may differ. Inferred, not published: plain transformers, of which the map is that of the
tokens' squared lengths, and resizing where grids differ (the student's map to the teacher's; the released codes average
whichever is finer).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.call_checks import require_at_least
from limbeck.losses.kd import require_classifiers
from limbeck.losses.levels import LevelLoss, choose
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts


def at_loss(
    student_map: Float[Tensor, "B Cs H W"], teacher_map: Float[Tensor, "B Ct H W"], p: float = 2.0
) -> Float[Tensor, ""]:
    """Mean squared difference of the two models' attention maps.

    The attention map of an image is a = mean over channels of |f|^p, all H·W cells as one vector of length 1:

        L = 1 / (B·H·W) · Σ (a_s / ‖a_s‖ - a_t / ‖a_t‖)²

    A map's scale does not count, nor the order of its channels. The value lies in [0, 2 / (H·W)].

    Args:
        student_map: (B, Cs, H, W).
        teacher_map: (B, Ct, H, W), the same grid; receives no gradient.
        p: at least 1; the larger, the more the strongest channels and cells count.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_map):
        student, teacher = comparable(student_map, teacher_map)
        return F.mse_loss(_attention(student, p), _attention(teacher, p))


class AttentionTransfer(LevelLoss):
    """Sum of `at_loss` over pairs of levels.

    Without `pairs`: stages of pyramids by nearest stride; of a plain transformer, `num_levels` evenly spaced blocks that
    end with the last stand for its stages.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        p: the power of the activations, at least 1.
        pairs: explicit (student level, teacher level) names instead of the rule above.
        num_levels: blocks taken of a plain transformer.

    Raises:
        UserError: an option is out of range, a model is a detector, or no level can be paired.
    """

    matches_blocks: ClassVar[bool] = True

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        p: float = 2.0,
        pairs: Sequence[tuple[str, str]] | None = None,
        num_levels: int = 4,
    ) -> None:
        require_classifiers("at", student, teacher)
        # Below 1 the gradient of |f|^p is infinite at the zeros that a ReLU leaves.
        require_at_least("at", 1, p=p)
        super().__init__(student, teacher, "at", choose(student, teacher, "at", pairs, num_levels))
        self.p = p

    @property
    def default_weight(self) -> float:
        """1000, as published."""
        return 1000.0

    def compare(self, index: int, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """`at_loss` of the two maps."""
        return at_loss(student_map, teacher_map, self.p)


def _attention(feature_map: Float[Tensor, "B C H W"], p: float) -> Float[Tensor, "B N"]:
    return F.normalize(feature_map.abs().pow(p).mean(dim=1).flatten(1), dim=1, eps=1e-12)
