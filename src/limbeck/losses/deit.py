"""Distillation as in DeiT: the teacher's answer as a second label, read by a head of its own where there is one.

Touvron, Cord, Douze, Massa, Sablayrolles, Jégou, "Training data-efficient image transformers & distillation through
attention", ICML 2021, arXiv:2012.12877.

Published: half the loss from the labels, half from the class that the teacher names (hard), which beat the teacher's soft
probabilities (DeiT-B 83.0 against 81.8). The paper's soft baseline has temperature 3 and weights 0.9 on the labels and 0.1 on the
teacher: `--method "deit(kind=soft, temperature=3.0, weight=0.1)" --task_weight 0.9`; the released code's defaults are
temperature 1 and 0.5, and so are these. Label smoothing is on the true labels only.

With a distillation token the class token's head learns from the labels alone and the distillation token's from the teacher
alone. The network answers with the mean of both heads' logits, as the released code does; the paper adds the softmax of each.

The released code divides the soft divergence by the number of classes too, which leaves a thousandth of the formula on ImageNet;
here it is the formula. Inferred: networks with a distillation head but no such token (LeViT), whose head is used in the same way.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.kd import kd_loss, require_same_classes
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs, Request

Kind = Literal["hard", "soft"]


def hard_distillation_loss(
    student_logits: Float[Tensor, "B K"], teacher_logits: Float[Tensor, "B K"]
) -> Float[Tensor, ""]:
    """Mean over the batch of -log softmax(student)_c, where c is the teacher's likeliest class of the same picture.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K); of a mixed picture, what the teacher says of the mixture.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_logits):
        student, teacher = comparable(student_logits, teacher_logits)
        return F.cross_entropy(student, teacher.argmax(dim=1))


class DeiT(DistillationLoss):
    """`hard_distillation_loss` or `kd_loss`, of the distillation head where the student has one.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        kind: `hard` learns the teacher's likeliest class, `soft` its probabilities.
        temperature: τ > 0 of `soft`.
        token: whether the distillation head learns from the teacher and the other from the labels; `auto` where the student has
            one. False lets the mean of both learn from both.

    Raises:
        UserError: the temperature is not positive, the models' classes differ in number, or `token` asks for a distillation
            head that the student does not have.
    """

    default_task_weight: ClassVar[float] = 0.5

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        kind: Kind = "hard",
        temperature: float = 1.0,
        token: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(student, teacher)
        require_same_classes("deit", student, teacher)
        require_positive("deit", temperature=temperature)
        if token is True and not student.has_distillation_token:
            raise UserError(
                f"deit: token is True, but {student.name} has no distillation token. Take a distilled network "
                "(deit_tiny_distilled_patch16_224), or leave token out: then its only head learns from labels and teacher."
            )
        self.kind: Kind = kind
        self.temperature = temperature
        self.token = student.has_distillation_token if token == "auto" else token
        self.student_request = Request(heads=self.token)
        if self.token:
            self.notes = ("the distillation head learns from the teacher, the class head from the labels",)

    @property
    def default_weight(self) -> float:
        """0.5, beside 0.5 on the labels."""
        return 0.5

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `hard_distillation_loss` and `kd_loss`; the target is not read."""
        logits = student.distilled_logits if self.token else student.logits
        assert logits is not None, "the heads were asked for"
        if self.kind == "hard":
            return hard_distillation_loss(logits, teacher.logits)
        return kd_loss(logits, teacher.logits, self.temperature)
