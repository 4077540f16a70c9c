"""Knowledge distillation from soft labels.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531. The default
temperature and weights (0.1 on the labels, 0.9 on this term) are those of the CIFAR-100 benchmark of
Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020.
"""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.detection import DetectorFacts
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs


def kd_loss(
    student_logits: Float[Tensor, "B K"], teacher_logits: Float[Tensor, "B K"], temperature: float = 4.0
) -> Float[Tensor, ""]:
    """τ² · mean over the batch of KL(softmax(teacher/τ) ‖ softmax(student/τ)).

    The factor τ² keeps the gradient's scale when τ changes. The sum runs over classes, the mean over images
    only: dividing by the number of classes as well would make the term K times weaker.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K); receives no gradient.
        temperature: τ > 0.

    Returns:
        A scalar, zero where the distributions agree, in at least float32.
    """
    with no_autocast(student_logits):
        student, teacher = comparable(student_logits, teacher_logits)
        divergence = F.kl_div(
            F.log_softmax(student / temperature, dim=1),
            F.log_softmax(teacher / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * temperature**2


class KD(DistillationLoss):
    """`kd_loss` on the logits of both models.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        temperature: τ > 0.

    Raises:
        UserError: the temperature is not positive, or the models' classes differ in number.
    """

    method: ClassVar[str] = "kd"
    """The name in messages, also of what is derived from this."""
    on_logits: ClassVar[bool] = True
    default_task_weight: ClassVar[float] = 0.1

    def __init__(self, student: ModelFacts, teacher: ModelFacts, *, temperature: float = 4.0) -> None:
        super().__init__(student, teacher)
        require_same_classes(self.method, student, teacher)
        require_positive(self.method, temperature=temperature)
        self.temperature = temperature

    @property
    def default_weight(self) -> float:
        """0.9, beside 0.1 on the labels."""
        return 0.9

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `kd_loss`; the target is not read."""
        return kd_loss(student.logits, teacher.logits, self.temperature)


def require_classifiers(method: str, *models: ModelFacts) -> None:
    """Refuse a loss that reads what only classifiers give.

    Raises:
        UserError: a model is a detector.
    """
    for facts in models:
        if isinstance(facts, DetectorFacts):
            raise UserError(
                f"{method} compares what classifiers say of an image, but {facts.name} is a detector. "
                "`limbeck methods` lists those for detection (pkd, fgd, roi_kd, ...)."
            )


def require_same_classes(method: str, student: ModelFacts, teacher: ModelFacts) -> None:
    """Refuse a loss on logits for two models whose classes cannot correspond.

    Raises:
        UserError: a model is a detector, or the numbers of classes differ.
    """
    require_classifiers(method, student, teacher)
    if student.num_classes != teacher.num_classes:
        raise UserError(
            f"{method} compares class by class, but the teacher {teacher.name} has {teacher.num_classes} classes and "
            f"the student {student.name} has {student.num_classes}. Train the teacher on these classes first "
            "(`limbeck train`), or distil features only (reviewkd, manifold, vitkd, pkd, ...)."
        )
