"""CWD: each channel as a distribution over positions, matched to the teacher's.

Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256.

The published weight of feature maps in detectors is 10 at temperature 1, which are the defaults; a 1x1 convolution
brings the student to the teacher's width. Inferred, not published: classification, plain transformers, and resizing
the student's map where sizes differ.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.levels import LevelLoss, Projector, choose
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts


def cwd_loss(
    student_map: Float[Tensor, "B C H W"], teacher_map: Float[Tensor, "B C H W"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Divergence of the channels' spatial distributions.

    With s and t the softmax over the H·W positions of each channel of the maps divided by τ:

        L = τ² / (B·C) · Σ t · log(t / s)

    A constant added to a channel changes nothing.

    Args:
        student_map: (B, C, H, W).
        teacher_map: (B, C, H, W); receives no gradient.
        temperature: τ > 0; the larger, the more positions count.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_map):
        student, teacher = comparable(student_map, teacher_map)
        log_student = F.log_softmax(student.flatten(2) / temperature, dim=2)
        log_teacher = F.log_softmax(teacher.flatten(2) / temperature, dim=2)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=2)
        return temperature**2 * divergence.mean()


class CWD(LevelLoss):
    """Sum of `cwd_loss` over pairs of levels.

    Without `pairs`: levels of pyramids by nearest stride; of a plain transformer, `num_levels` evenly spaced blocks
    that end with the last stand for its stages; of what detectors' heads or decoders read, all maps of equal stride.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        temperature: τ > 0.
        pairs: explicit (student level, teacher level) names instead of the rule above.
        num_levels: blocks taken of a plain transformer.

    Raises:
        UserError: an option is out of range, or no level can be paired.
    """

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        temperature: float = 1.0,
        pairs: Sequence[tuple[str, str]] | None = None,
        num_levels: int = 4,
    ) -> None:
        if not temperature > 0:
            raise UserError(f"cwd: temperature is {temperature}; it must be positive.")
        super().__init__(student, teacher, "cwd", choose(student, teacher, "cwd", pairs, num_levels))
        self.temperature = temperature
        self.project = nn.ModuleList(Projector(own.channels, other.channels, bias=False) for own, other in self.levels)

    @property
    def default_weight(self) -> float:
        """10, as published for the feature maps of detectors."""
        return 10.0

    def compare(self, index: int, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """`cwd_loss` of the projected student's map."""
        return cwd_loss(self.project[index](student_map), teacher_map, self.temperature)
