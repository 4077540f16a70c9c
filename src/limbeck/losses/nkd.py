"""Normalised knowledge distillation (NKD).

Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv:2303.13005.

Published settings: ImageNet CNNs γ 1.5, τ 1; DeiT III to DeiT γ 1, τ 1; CIFAR-100 γ 3.5, τ 3.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.kd import require_same_classes
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs


def nkd_loss(
    student_logits: Float[Tensor, "B K"],
    teacher_logits: Float[Tensor, "B K"],
    target: Int[Tensor, " B"] | Float[Tensor, "B K"],
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Target and non-target cross-entropies with the teacher, each over its own normalised distribution.

    With S, T the softmaxes of both logits, y the target class and Ŝ, T̂ the softmaxes at temperature τ over the
    K-1 logits that remain without y:

        L = mean_b[ -T_y · log S_y ] + γ · τ² · mean_b[ -Σ_{i≠y} T̂_i · log Ŝ_i ]

    The target part is always at temperature 1. These are cross-entropies: the value at the optimum is the
    teacher's entropy, not zero.

    Args:
        student_logits: (B, K), K >= 2.
        teacher_logits: (B, K); receives no gradient.
        target: class indices (B,), or soft labels (B, K) of which the arg-max is the target (as published for
            Mixup and CutMix; the second class then counts as non-target).
        gamma: γ >= 0.
        temperature: τ > 0.

    Returns:
        A scalar in at least float32.

    Raises:
        UserError: there are fewer than two classes.
    """
    num_classes = student_logits.shape[1]
    if num_classes < 2:
        raise UserError(f"nkd needs at least two classes; the logits have {num_classes}.")
    index = (target.argmax(dim=1) if target.ndim == 2 else target).long().unsqueeze(1)
    with no_autocast(student_logits):
        student, teacher = comparable(student_logits, teacher_logits)
        target_part = F.softmax(teacher, dim=1).gather(1, index) * F.log_softmax(student, dim=1).gather(1, index)
        others = all_but(index, num_classes)
        # The target is removed, not masked by a large negative number: exactly K-1 logits are normalised, and no
        # logarithm of zero can arise.
        log_student = F.log_softmax(student.gather(1, others) / temperature, dim=1)
        soft_teacher = F.softmax(teacher.gather(1, others) / temperature, dim=1)
        other_part = (soft_teacher * log_student).sum(dim=1)
        return -target_part.mean() - gamma * temperature**2 * other_part.mean()


class NKD(DistillationLoss):
    """`nkd_loss` on the logits of both models.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        gamma: γ >= 0, weight of the non-target part.
        temperature: τ > 0, of the non-target part.

    Raises:
        UserError: an option is out of range, or the models' classes differ in number or are fewer than two.
    """

    needs_labels: ClassVar[bool] = True
    on_logits: ClassVar[bool] = True

    def __init__(
        self, student: ModelFacts, teacher: ModelFacts, *, gamma: float = 1.5, temperature: float = 1.0
    ) -> None:
        super().__init__(student, teacher)
        require_same_classes("nkd", student, teacher)
        require_positive("nkd", temperature=temperature)
        if not gamma >= 0:
            raise UserError(f"nkd: gamma is {gamma}; it must not be negative.")
        if student.num_classes < 2:
            raise UserError(f"nkd needs at least two classes; {student.name} has {student.num_classes}.")
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `nkd_loss`.

        Raises:
            UserError: there is no target.
        """
        if target is None:
            raise UserError("nkd reads the label of every image and cannot use unlabelled images; use kd instead.")
        return nkd_loss(student.logits, teacher.logits, target, self.gamma, self.temperature)


def all_but(index: Int[Tensor, "B 1"], num_classes: int) -> Int[Tensor, "B others"]:
    """For each row the K-1 class indices other than the given one, ascending: to remove it from logits by `gather`."""
    ascending = torch.arange(num_classes - 1, device=index.device).unsqueeze(0)
    return ascending + (ascending >= index).long()
