"""SpectralKD: match the spectra of feature maps.

Tian et al., "SpectralKD: A Unified Framework for Interpreting and Distilling Vision Transformers via Spectral Analysis",
2024, arXiv:2412.19055.

Published: DeiT from CaiT-S24 at the first two and the last six blocks with weight 0.2, Swin from Swin at its four stages with
weight 0.05, both without drop path, beside `kd` at temperature 1 with weight 0.9 and labels with weight 0.1; wider teachers have
neighbouring channels averaged. Inferred: students wider than their teacher, unequal grids, which are resized to the teacher's,
and other pairs than plain transformers and pyramids of four stages.

The transform is orthonormal, so that by Parseval's theorem the term is close to the squared error of the maps themselves: the
frequencies that a real transform leaves out count once instead of twice. What is special is the pooling of channels and the
choice of levels.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.kd import require_classifiers
from limbeck.losses.levels import PairedLevels, require_levels
from limbeck.losses.pairing import counterparts, first_and_last, is_plain, named
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts, Outputs


def spectralkd_loss(
    student_map: Float[Tensor, "B Cs H W"], teacher_map: Float[Tensor, "B Ct H W"]
) -> Float[Tensor, ""]:
    """L = mean over images, channels, frequencies, real and imaginary parts of (F(S) - F(T))².

    F is the two-dimensional Fourier transform of real maps, orthonormal, over H and the ⌊W/2⌋ + 1 frequencies along W that
    determine the others. The wider map's channels are first averaged to the narrower one's number, each over its share of
    neighbouring ones.

    Args:
        student_map: (B, Cs, H, W).
        teacher_map: (B, Ct, H, W); receives no gradient.

    Returns:
        A scalar in at least float32, in which the transform is computed as well.
    """
    with no_autocast(student_map):
        student, teacher = comparable(student_map, teacher_map)
        channels = min(student.shape[1], teacher.shape[1])
        difference = pool_channels(student, channels) - pool_channels(teacher, channels)
        # The transform is linear: one of the difference instead of the difference of two.
        spectrum = torch.fft.rfft2(difference, norm="ortho")
        loss: Tensor = torch.view_as_real(spectrum).square().mean()
        return loss


def pool_channels(feature_map: Float[Tensor, "B C H W"], channels: int) -> Float[Tensor, "B c H W"]:
    """(B, C, H, W) with `channels` averages of neighbouring channels, as adaptive pooling divides them; itself if C is that."""
    if feature_map.shape[1] == channels:
        return feature_map
    pooled: Tensor = F.adaptive_avg_pool1d(feature_map.flatten(2).transpose(1, 2), channels)
    return pooled.transpose(1, 2).reshape(-1, channels, *feature_map.shape[2:])


class SpectralKD(PairedLevels):
    """Mean over pairs of levels of `spectralkd_loss`.

    Without `pairs`: two plain transformers use their first and last blocks (all by relative depth where one has fewer than
    `first + last`); pyramids use stages by nearest stride; a pyramid and a plain transformer use the pyramid's stages and
    as many evenly spaced blocks.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        first: blocks from the front of two plain transformers.
        last: blocks from their back.
        pairs: explicit (student level, teacher level) names instead of the rules above.

    Raises:
        UserError: an option is out of range, a model is a detector or offers no level, or `pairs` does not fit the models.
    """

    matches_blocks: ClassVar[bool] = True

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        first: int = 2,
        last: int = 6,
        pairs: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        require_classifiers("spectralkd", student, teacher)
        require_levels("spectralkd", student, teacher)
        if first < 0 or last < 0 or first + last < 1:
            raise UserError(
                f"spectralkd: first={first} and last={last} choose no block; they must be >= 0, one of them > 0."
            )
        own, other = student.levels, teacher.levels
        if pairs is not None:
            chosen = named(student, teacher, pairs)
        elif is_plain(own) and is_plain(other):
            chosen = tuple((s.name, t.name) for s, t in first_and_last(own, other, first, last))
        else:
            chosen = tuple((s.name, t.name) for s, t in counterparts(own, other, len(own) + len(other)))
        super().__init__(student, teacher, "spectralkd", chosen)
        self.pyramids = not (is_plain(own) or is_plain(other))
        self.notes += tuple(
            f"spectralkd: student {pair.student} is wider ({mine.channels} channels) than teacher {pair.teacher} "
            f"({theirs.channels}); its channels are averaged to that number."
            for pair, (mine, theirs) in zip(self.pairs, self.levels, strict=True)
            if mine.channels > theirs.channels
        )

    @property
    def default_weight(self) -> float:
        """0.2, as published for DeiT; between two pyramids 0.05, as published for Swin."""
        return 0.05 if self.pyramids else 0.2

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """Mean of `spectralkd_loss` over the pairs; the target is not read."""
        terms = [spectralkd_loss(own, other) for own, other in self.paired_maps(student, teacher)]
        return torch.stack(terms).mean()
