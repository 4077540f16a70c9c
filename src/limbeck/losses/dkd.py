"""DKD: decoupled knowledge distillation.

Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679.

Published settings: CIFAR-100 α 1, β 8 (2 to 8, by the pair), τ 4, the weight rising over 20 epochs, which are the defaults;
ImageNet α 1, τ 1, over 1 epoch, β 0.5 for ResNet-34 to ResNet-18 and 2 for ResNet-50 to MobileNetV1. Inferred, not published:
with mixed images the target is the arg-max of the mixed label, as others have it.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.call_checks import require_at_least, require_positive
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.kd import require_same_classes
from limbeck.losses.nkd import all_but
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs


def dkd_loss(
    student_logits: Float[Tensor, "B K"],
    teacher_logits: Float[Tensor, "B K"],
    target: Int[Tensor, " B"] | Float[Tensor, "B K"],
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Float[Tensor, ""]:
    """The two parts of softened KL, target against the rest and among the rest, each with a weight of its own.

    With y the target class, p = softmax(logits/τ), b = (p_y, 1 - p_y) and p̂ the softmax at τ over the K-1 logits that
    remain without y, of student (s) and teacher (t):

        L = τ² · mean over the batch of [α · KL(b_t ‖ b_s) + β · KL(p̂_t ‖ p̂_s)]

    `kd_loss` is the same with α = 1 and 1 - p_y of the teacher in place of β: where the teacher is sure, it hardly tells
    the other classes apart, and here it does.

    Args:
        student_logits: (B, K), K >= 3.
        teacher_logits: (B, K); receives no gradient.
        target: class indices (B,), or soft labels (B, K) of which the arg-max is the target (the second class of a mixed
            image then counts as non-target).
        alpha: α >= 0.
        beta: β >= 0.
        temperature: τ > 0.

    Returns:
        A scalar, zero where the distributions agree, in at least float32.

    Raises:
        UserError: there are fewer than three classes.
    """
    num_classes = student_logits.shape[1]
    if num_classes < 3:
        raise UserError(_too_few("the logits have", num_classes))
    index = (target.argmax(dim=1) if target.ndim == 2 else target).long().unsqueeze(1)
    with no_autocast(student_logits):
        student, teacher = comparable(student_logits, teacher_logits)
        student, teacher = student / temperature, teacher / temperature
        others = all_but(index, num_classes)
        rest_student, rest_teacher = student.gather(1, others), teacher.gather(1, others)
        target_part = _divergence(
            _target_and_rest(student.gather(1, index), rest_student),
            _target_and_rest(teacher.gather(1, index), rest_teacher),
        )
        other_part = _divergence(rest_student, rest_teacher)
        return temperature**2 * (alpha * target_part + beta * other_part)


class DKD(DistillationLoss):
    """`dkd_loss` on the logits of both models.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        alpha: α >= 0, weight of target against the rest.
        beta: β >= 0, weight of the rest among themselves; 0.5 to 8 by the pair, the smaller the closer the teacher's size.
        temperature: τ > 0.

    Raises:
        UserError: an option is out of range, or the models' classes differ in number or are fewer than three.
    """

    needs_labels: ClassVar[bool] = True
    on_logits: ClassVar[bool] = True

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(student, teacher)
        require_same_classes("dkd", student, teacher)
        require_at_least("dkd", 0, alpha=alpha, beta=beta)
        require_positive("dkd", temperature=temperature)
        if alpha == beta == 0:
            raise UserError("dkd: alpha and beta are both 0, so nothing would be learnt. Set one.")
        if student.num_classes < 3:
            raise UserError(_too_few(f"{student.name} has", student.num_classes))
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature

    @property
    def default_warmup_epochs(self) -> float:
        """20, as published for CIFAR-100; on ImageNet it was 1."""
        return 20.0

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `dkd_loss`.

        Raises:
            UserError: there is no target.
        """
        if target is None:
            raise UserError("dkd reads the label of every image and cannot use unlabelled images; use kd instead.")
        return dkd_loss(student.logits, teacher.logits, target, self.alpha, self.beta, self.temperature)


def _target_and_rest(target_logit: Float[Tensor, "B 1"], rest: Float[Tensor, "B others"]) -> Float[Tensor, "B 2"]:
    """Two logits whose softmax is (p_y, 1 - p_y). The difference 1 - p_y itself would be 0 for a sure network."""
    return torch.cat([target_logit, rest.logsumexp(dim=1, keepdim=True)], dim=1)


def _divergence(student: Float[Tensor, "B n"], teacher: Float[Tensor, "B n"]) -> Float[Tensor, ""]:
    """Mean over the batch of KL(softmax(teacher) ‖ softmax(student))."""
    return F.kl_div(
        F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1), reduction="batchmean", log_target=True
    )


def _too_few(whose: str, num_classes: int) -> str:
    return f"dkd needs at least three classes, so that two remain without the target; {whose} {num_classes}. Use kd or nkd."
