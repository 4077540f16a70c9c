"""RKD: distances between images, and angles at them, are to be in the teacher's proportions.

Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.

As the released codes have it: of the pooled vector that enters the classifier, distances with weight 25 and angles with weight 50
beside the labels. Nothing is learnt beside the student, widths may differ, and the images compared are those of one device's
batch. Memory: for a batch of B images and vectors of D channels, several times B²·D and B³ floats of 4 bytes (each 67 MB at
B 256 and D 256, each 537 MB at B 512 and D 512); `angle=0` saves the B³. Inferred, not published: images at one place.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.call_checks import require_at_least
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.kd import require_classifiers
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs, Request

# Square of the distance below which two images are at one place.
_EPS = 1e-12


def rkd_loss(
    student: Float[Tensor, "B Ds"],
    teacher: Float[Tensor, "B Dt"],
    distance: float = 25.0,
    angle: float = 50.0,
) -> Float[Tensor, ""]:
    """Differences of relative distances between two images and of angles among three.

    With δ_ij = f_j - f_i, d_ij = ‖δ_ij‖, m the mean of d over the B(B-1) pairs of two images, e_ij = δ_ij / d_ij,
    and h(x) = x²/2 for |x| < 1, |x| - 1/2 beyond:

        L = distance / B² · Σ_ij h(d_ij/m of the student - the teacher's)
            + angle / B³ · Σ_ijk h(e_ij · e_ik of the student - the teacher's)

    Shifting, scaling and rotating all vectors changes nothing. Two images at one place have no direction between them:
    e is 0, and there is no gradient along it (the formula's would be infinite). One image or two cost nothing.

    Args:
        student: (B, Ds).
        teacher: (B, Dt); receives no gradient.
        distance: weight of the first sum, >= 0; at 0 it is not computed.
        angle: weight of the second, >= 0; at 0 it is not computed.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student):
        student, teacher = comparable(student, teacher)
        apart_student, apart_teacher = _differences(student), _differences(teacher)
        total = student.new_zeros(())
        if distance:
            total = total + distance * F.smooth_l1_loss(_distances(apart_student), _distances(apart_teacher))
        if angle:
            total = total + angle * F.smooth_l1_loss(_angles(apart_student), _angles(apart_teacher))
        return total


class RKD(DistillationLoss):
    """`rkd_loss` on the vectors that enter the classifiers of both models.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        distance: weight of the distances, >= 0.
        angle: weight of the angles, >= 0.

    Raises:
        UserError: a model is a detector, or a weight is negative, or both are 0.
    """

    def __init__(
        self, student: ModelFacts, teacher: ModelFacts, *, distance: float = 25.0, angle: float = 50.0
    ) -> None:
        super().__init__(student, teacher)
        require_classifiers("rkd", student, teacher)
        require_at_least("rkd", 0, distance=distance, angle=angle)
        if distance == angle == 0:
            raise UserError("rkd: distance and angle are both 0, so nothing would be learnt. Set one.")
        self.distance = distance
        self.angle = angle
        self.student_request = Request(pooled=True)
        self.teacher_request = Request(pooled=True)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `rkd_loss`; the target is not read."""
        assert student.pooled is not None and teacher.pooled is not None
        return rkd_loss(student.pooled, teacher.pooled, self.distance, self.angle)


def _differences(vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B B D"]:
    """Entry i, j is the way from i to j. Subtracted, not read from the Gram matrix, where near images would be lost."""
    return vectors.unsqueeze(0) - vectors.unsqueeze(1)


def _distances(apart: Float[Tensor, "B B D"]) -> Float[Tensor, "B B"]:
    """Over their mean, the diagonal 0."""
    images = apart.shape[0]
    lengths = apart.square().sum(dim=2).clamp(min=_EPS).sqrt()
    lengths = lengths * (1 - torch.eye(images, dtype=lengths.dtype, device=lengths.device))
    mean = lengths.sum() / max(images * (images - 1), 1)
    return lengths / mean.clamp(min=_EPS**0.5)


def _angles(apart: Float[Tensor, "B B D"]) -> Float[Tensor, "B B B"]:
    """Cosines at i between the directions to j and to k."""
    squares = apart.square().sum(dim=2, keepdim=True)
    directions = apart * torch.where(squares > _EPS, squares.clamp(min=_EPS).rsqrt(), 0.0)
    return directions @ directions.transpose(1, 2)
