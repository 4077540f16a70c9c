"""Noise adaptation: learn the teacher's hard answers through a matrix that may say how they are wrong.

Chen et al., "Learning Student Networks in the Wild" (DFND), CVPR 2021; used again by Wang et al., "Attention Probe", ICASSP
2022, with weight 1 beside softened probabilities (`kd`, temperature 4) and `patch_attention`.

Unlabelled images of other things than the teacher knows get its likeliest class as a label, which is often wrong, but
wrong in a way: a matrix M learns which classes stand for which, so that the student need not. Inferred: the matrix's
parametrisation (each column is a softmax) and its start; the released code trains it by an optimiser of its own (Adam,
learning rate 1e-3), here it is trained like every other parameter of a loss.
"""

from math import log

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.kd import require_same_classes
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs


def noise_adaptation_loss(
    student_logits: Float[Tensor, "B K"], teacher_logits: Float[Tensor, "B K"], matrix_logits: Float[Tensor, "K K"]
) -> Float[Tensor, ""]:
    """Mean over the batch of -log (M · softmax(student))_y, y the teacher's likeliest class.

    M is the softmax of `matrix_logits` over its first dimension: M_ij is the probability that the teacher says class i of
    what is class j for the student, and every column sums to 1. With the identity this is the cross-entropy with the
    teacher's hard labels. It is computed as a log-sum-exp, so that no logarithm of zero can arise.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K); only the place of its largest value counts.
        matrix_logits: (K, K), rows for the teacher's classes, columns for the student's.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_logits):
        student, teacher = comparable(student_logits, teacher_logits)
        log_matrix = F.log_softmax(matrix_logits.to(student.dtype), dim=0)
        joint = log_matrix[teacher.argmax(1)] + F.log_softmax(student, dim=1)
        return -torch.logsumexp(joint, dim=1).mean()


class NoiseAdaptation(DistillationLoss):
    """`noise_adaptation_loss` with a learnt matrix; labels are not read.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        diagonal: every diagonal entry of the matrix at the start, between 1/K and 1; the rest of a column is shared
            out evenly.

    Raises:
        UserError: the models' classes differ in number, or `diagonal` is out of range.
    """

    def __init__(self, student: ModelFacts, teacher: ModelFacts, *, diagonal: float = 0.9) -> None:
        super().__init__(student, teacher)
        require_same_classes("noise_adaptation", student, teacher)
        classes = student.num_classes
        if not (diagonal < 1 and diagonal * classes > 1) and classes > 1:
            raise UserError(
                f"noise_adaptation: diagonal is {diagonal}; it must lie between 1/{classes} (all classes alike) and 1."
            )
        own = log(diagonal * (classes - 1) / (1 - diagonal)) if classes > 1 else 0.0
        self.matrix_logits = nn.Parameter(own * torch.eye(classes))

    @property
    def matrix(self) -> Float[Tensor, "K K"]:
        """M: column j says which classes the teacher gives to what is class j for the student."""
        return self.matrix_logits.softmax(0)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `noise_adaptation_loss`; the target is not read."""
        return noise_adaptation_loss(student.logits, teacher.logits, self.matrix_logits)
