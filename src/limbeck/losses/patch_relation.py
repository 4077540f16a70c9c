"""Patch relations: which patches of an image the teacher finds alike, as a distribution; no labels are needed.

The local term of LightlyTrain's distillation from DINOv3 (its third version; documentation of lightly-train 0.15, no paper).

Published: cosine maps of the patches of one image, of the last layer, through a softmax of each row at temperature 0.07; KL
divergence, averaged over images and rows; a learnt linear projector of the student before the cosines; weight 1. Published beside
a global term that compares images with a queue of others; `feature_kd(dense=0)` can stand for it. Inferred: a patch's cosine with
itself, which is 1 on both sides, stays in its row, and unequal grids are averaged to the coarser one.

`manifold` compares the same cosines. There, each squared difference counts alike, in many layers, across images too, and without
a projector; here the softmax looks almost only at each patch's nearest relatives, in the last layer. A cosine of 0.9 weighs
exp(0.8/0.07), or 90 thousand times, as much as one of 0.1.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.call_checks import require_positive
from limbeck.losses.base import DistillationLoss, Pairing
from limbeck.losses.grids import common_grid, match_grid, tokens
from limbeck.losses.kd import require_classifiers
from limbeck.losses.last_maps import last_maps, map_of, request_of
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs


def patch_relation_loss(
    student_tokens: Float[Tensor, "B N Ds"], teacher_tokens: Float[Tensor, "B N Dt"], temperature: float = 0.07
) -> Float[Tensor, ""]:
    """Mean over images and patches of KL(softmax(c_teacher/τ) ‖ softmax(c_student/τ)).

    c is a patch's row of the image's (N, N) map of cosines, its cosine with itself included. Lengths of tokens do not count, nor
    rotations of the channels.

    Args:
        student_tokens: (B, N, Ds) patch tokens without prefix tokens.
        teacher_tokens: (B, N, Dt), the same positions; receives no gradient.
        temperature: τ > 0.

    Returns:
        A scalar, zero where the relations agree, in at least float32.
    """
    with no_autocast(student_tokens):
        student, teacher = comparable(student_tokens, teacher_tokens)
        rows = [F.log_softmax(_cosines(of) / temperature, dim=-1).flatten(0, 1) for of in (student, teacher)]
        return F.kl_div(rows[0], rows[1], reduction="batchmean", log_target=True)


class PatchRelation(DistillationLoss):
    """`patch_relation_loss` of the last maps, after the final norm where both models have such a map.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        temperature: τ > 0.
        projector: whether the student's patches pass a learnt linear map to the teacher's width first. Without it the student's
            own features must have the teacher's relations, also where it is narrower.

    Raises:
        UserError: a model is a detector, or offers no map, or the temperature is not positive.
    """

    def __init__(
        self, student: ModelFacts, teacher: ModelFacts, *, temperature: float = 0.07, projector: bool = True
    ) -> None:
        super().__init__(student, teacher)
        require_classifiers("patch_relation", student, teacher)
        require_positive("patch_relation", temperature=temperature)
        self.temperature = temperature
        self.own, self.other = last_maps("patch_relation", student, teacher)
        self.pairs = (Pairing(self.own.name, self.other.name),)
        self.student_request, self.teacher_request = request_of(self.own), request_of(self.other)
        grid = common_grid(self.own.grid, self.other.grid)
        if (self.own.grid, self.other.grid) != (grid, grid):
            self.notes = (
                f"patch_relation: student {self.own.name} ({self.own.grid[0]}x{self.own.grid[1]}) and teacher {self.other.name} "
                f"({self.other.grid[0]}x{self.other.grid[1]}) are compared on {grid[0]}x{grid[1]} cells.",
            )
        self.projector = nn.Linear(self.own.channels, self.other.channels) if projector else None

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `patch_relation_loss`; the target is not read."""
        own, other = match_grid(map_of(student, self.own), map_of(teacher, self.other))
        patches = tokens(own)
        if self.projector is not None:
            patches = self.projector(patches.to(self.projector.weight.dtype))
        return patch_relation_loss(patches, tokens(other), self.temperature)


def _cosines(patches: Tensor) -> Tensor:
    """(B, N, N) of (B, N, D)."""
    unit = F.normalize(patches, dim=-1, eps=1e-12)
    return unit @ unit.transpose(1, 2)
