"""Patch attention: how like the class token is to every patch, block by block, must agree.

Wang, Cao, Shi, Wu, Yang, "Attention Probe: Vision Transformer Distillation in the Wild", ICASSP 2022.

Published beside softened probabilities (`kd`, temperature 4) and `noise_adaptation`, with weight 0.8, for a teacher and a
student of equal depth and grid. Tokens are normalised over their channels, so that the Gram matrix holds cosines; the
released code normalises each channel over the tokens, which looks unintended. Inferred, not published: unequal depths and
grids, networks without a class token, and convolutional ones, of which the mean of a map stands for the class token.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.losses.grids import tokens
from limbeck.losses.kd import require_classifiers
from limbeck.losses.levels import PairedLevels, choose
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs


def patch_attention_loss(
    student_class: Float[Tensor, "B Cs"],
    student_patches: Float[Tensor, "B N Cs"],
    teacher_class: Float[Tensor, "B Ct"],
    teacher_patches: Float[Tensor, "B N Ct"],
) -> Float[Tensor, ""]:
    """Mean over images and patches of (cos(class, patch) of the student - the teacher's)².

    This is the class token's row of the Gram matrix of unit tokens, without its entry for itself. Lengths do not count,
    nor any rotation of the channels, so that the widths may differ and nothing is learnt beside the student. The value
    lies in [0, 4].

    Args:
        student_class: (B, Cs).
        student_patches: (B, N, Cs).
        teacher_class: (B, Ct); receives no gradient.
        teacher_patches: (B, N, Ct), the same positions; receives no gradient.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_patches):
        own_class, other_class = comparable(student_class, teacher_class)
        own, other = comparable(student_patches, teacher_patches)
        return F.mse_loss(_row(own_class, own), _row(other_class, other))


class PatchAttention(PairedLevels):
    """Mean over pairs of levels of `patch_attention_loss`.

    Without `pairs`: all blocks of two plain transformers of one depth; of unequal depths, all of the shallower one with
    as many evenly spaced ones of the other, the last included; stages of pyramids by nearest stride.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        pairs: explicit (student level, teacher level) names instead of the rule above.

    Raises:
        UserError: a model is a detector, or offers no level, or `pairs` does not fit the models.
    """

    matches_blocks: ClassVar[bool] = True

    def __init__(
        self, student: ModelFacts, teacher: ModelFacts, *, pairs: Sequence[tuple[str, str]] | None = None
    ) -> None:
        require_classifiers("patch_attention", student, teacher)
        num_levels = max(1, len(student.levels) + len(teacher.levels))
        super().__init__(
            student, teacher, "patch_attention", choose(student, teacher, "patch_attention", pairs, num_levels)
        )
        self.student_request = replace(self.student_request, class_tokens=True)
        self.teacher_request = replace(self.teacher_request, class_tokens=True)

    @property
    def default_weight(self) -> float:
        """0.8, as published."""
        return 0.8

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """Mean of `patch_attention_loss` over the pairs; the target is not read."""
        terms = [
            patch_attention_loss(
                _class_token(student, pair.student),
                tokens(own),
                _class_token(teacher, pair.teacher),
                tokens(other),
            )
            for pair, (own, other) in zip(self.pairs, self.paired_maps(student, teacher), strict=True)
        ]
        return torch.stack(terms).mean()


def _class_token(outputs: Outputs, level: str) -> Tensor:
    """(B, C) of a level; of a network without class tokens the mean of its patches."""
    own = outputs.class_tokens.get(level)
    return outputs.maps[level].mean((2, 3)) if own is None else own


def _row(class_token: Tensor, patches: Tensor) -> Tensor:
    """(B, N): cosines of the class token with every patch."""
    unit = F.normalize(class_token, dim=-1, eps=1e-12).unsqueeze(2)
    return (F.normalize(patches, dim=-1, eps=1e-12) @ unit).squeeze(2)
