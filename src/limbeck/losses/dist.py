"""DIST: agree with the teacher's predictions up to scale and offset.

Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536.

Published settings: β = γ = 1 with weight 2 on the term; temperature 1 on ImageNet, which is the default, and 4 on CIFAR-100.
Nothing here is inferred. The correlations over images are those of one device's batch.

A classifier that starts at zero says the same of all images and classes, and the first gradient is of the order of 1e6: use
AdamW, clip gradients, or start from weights.
"""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.call_checks import require_at_least, require_positive
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.kd import require_same_classes
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs

# With many classes this is no formality: the probabilities of a class that no image of the batch resembles differ by 1e-6
# or so, and a product of two such lengths is far below it. That class then has no correlation and hardly any pull.
_EPS = 1e-8


def dist_loss(
    student_logits: Float[Tensor, "B K"],
    teacher_logits: Float[Tensor, "B K"],
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """One minus the correlation of both models' probabilities: of each image over classes, of each class over images.

    With s and t the softmaxes at τ and r Pearson's correlation, Σ(s - s̄)(t - t̄) / (‖s - s̄‖ · ‖t - t̄‖ + 1e-8):

        L = τ² · [β · mean_b (1 - r(s_b, t_b)) + γ · mean_c (1 - r(s_·c, t_·c))]

    What does not vary has correlation 0: the second part of a batch of one image is γ, without gradient. Of two classes
    the first part sees only whether both models prefer the same one.

    Args:
        student_logits: (B, K), K >= 2.
        teacher_logits: (B, K); receives no gradient.
        beta: β >= 0, of the correlations over classes ("inter-class").
        gamma: γ >= 0, of the correlations over the batch ("intra-class").
        temperature: τ > 0.

    Returns:
        A scalar in [0, 2τ²(β + γ)], in at least float32.
    """
    with no_autocast(student_logits):
        student, teacher = comparable(student_logits, teacher_logits)
        student, teacher = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
        inter = 1 - _correlation(student, teacher, dim=1).mean()
        intra = 1 - _correlation(student, teacher, dim=0).mean()
        return temperature**2 * (beta * inter + gamma * intra)


class DIST(DistillationLoss):
    """`dist_loss` on the logits of both models.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        beta: β >= 0, weight of the correlations over classes.
        gamma: γ >= 0, weight of the correlations over the batch.
        temperature: τ > 0.

    Raises:
        UserError: an option is out of range, or the models' classes differ in number or are fewer than two.
    """

    on_logits: ClassVar[bool] = True

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        require_same_classes("dist", student, teacher)
        require_at_least("dist", 0, beta=beta, gamma=gamma)
        require_positive("dist", temperature=temperature)
        if beta == gamma == 0:
            raise UserError("dist: beta and gamma are both 0, so nothing would be learnt. Set one.")
        if student.num_classes < 2:
            raise UserError(f"dist needs at least two classes; {student.name} has {student.num_classes}.")
        if student.num_classes == 2 and gamma == 0:
            raise UserError(
                "dist: two probabilities always correlate perfectly, so with gamma 0 nothing would be learnt."
            )
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    @property
    def default_weight(self) -> float:
        """2, as published."""
        return 2.0

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `dist_loss`; the target is not read."""
        return dist_loss(student.logits, teacher.logits, self.beta, self.gamma, self.temperature)


def _correlation(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    student, teacher = student - student.mean(dim, keepdim=True), teacher - teacher.mean(dim, keepdim=True)
    # The gradient of a norm of nothing is zero in torch, so that what does not vary is finite in both directions.
    lengths: Tensor = student.norm(dim=dim) * teacher.norm(dim=dim)
    return (student * teacher).sum(dim) / (lengths + _EPS)
