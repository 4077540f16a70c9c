"""VkD: an orthogonal projection of the student's vector must meet the teacher's, normalised.

Miles, Elezi, Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024, arXiv:2403.06213.

A projection that keeps lengths and angles cannot do the student's work for it, nor collapse. Published: DeiT from RegNetY-160,
a student no wider than its teacher, the mean of its patch tokens, weight 1, beside DeiT's distillation: labels teach the class
token's head, softened probabilities at temperature 1 with weight 1 the distillation token's. Inferred: networks other than
plain transformers, which give the vector that enters their classifier, students wider than their teacher, and Cayley's
transform, where the published code takes matrix exponentials or reflections.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss, Pairing
from limbeck.losses.kd import require_classifiers
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs, Request

# Not torch's third map, products of Householder reflections: it truncates a diagonal of ±1 to whole numbers, so that the first
# step of weight decay turns the projection into zeros.
OrthogonalMap = Literal["cayley", "matrix_exp"]


def vkd_loss(projected: Float[Tensor, "B D"], teacher_vector: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """L = mean over images and channels of smooth_l1(P·s - (t - mean(t)) / std(t)).

    Mean and standard deviation are those of each vector's own channels, as in a LayerNorm without scale and offset;
    smooth_l1(x) is x²/2 where |x| < 1, and |x| - 1/2 elsewhere.

    Args:
        projected: (B, D), P·s.
        teacher_vector: (B, D), t; receives no gradient.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(projected):
        student, teacher = comparable(projected, teacher_vector)
        return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[1:]))


class VkD(DistillationLoss):
    """`vkd_loss` through a learnt (Dt, Ds) matrix P that stays orthogonal whatever the optimiser does.

    Where Ds <= Dt its columns are orthonormal, PᵀP = 1: lengths and angles of the student's vectors are kept. Where Ds > Dt
    its rows are, PPᵀ = 1: Dt directions of the student's space are kept and what lies in the others is not compared.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        vector: which of the student's: `patches`, the mean of its final map; `pooled`, what enters its classifier; `auto`,
            the patches of plain transformers, whose class token is thus left to the labels, and otherwise pooled.
        orthogonal_map: how the matrix is made from free parameters, by Cayley's transform or by a matrix exponential, which
            agree to second order around its start; the exponential takes about ten times as long.

    Raises:
        UserError: a model is a detector, or the student has no final map and `vector` asks for its patches.
    """

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        vector: Literal["auto", "patches", "pooled"] = "auto",
        orthogonal_map: OrthogonalMap = "cayley",
    ) -> None:
        super().__init__(student, teacher)
        require_classifiers("vkd", student, teacher)
        final = student.final
        if vector == "patches" and final is None:
            raise UserError(f"vkd: {student.name} has no final map whose patches could be averaged. Use vector=pooled.")
        self.averages = final is not None and (vector == "patches" or (vector == "auto" and final.kind == "block"))
        self.student_request = Request(final=self.averages, pooled=not self.averages)
        self.teacher_request = Request(pooled=True)
        self.pairs = (Pairing("final" if self.averages else "pooled", "pooled"),)
        own = final.channels if final is not None and self.averages else student.pooled_channels
        other = teacher.pooled_channels
        self.projection = nn.Linear(own, other, bias=False)
        orthogonal(self.projection, orthogonal_map=orthogonal_map)
        if own > other:
            self.notes = (
                f"vkd: the student's vector is wider ({own}) than the teacher's ({other}); only {other} directions of it, which "
                "are learnt, are compared.",
            )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `vkd_loss`; the target is not read."""
        vector = student.final.mean((2, 3)) if self.averages and student.final is not None else student.pooled
        assert vector is not None
        assert teacher.pooled is not None
        with no_autocast(vector):  # in half precision the matrix would be orthogonal to two digits only
            matrix = self.projection.weight  # made anew whenever it is read
            return vkd_loss(F.linear(vector.to(matrix.dtype), matrix), teacher.pooled)
