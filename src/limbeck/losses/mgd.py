"""MGD: regenerate the teacher's map from a partly masked map of the student.

Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022, arXiv:2205.01529.

Three published settings. Classification masks whole channels of the last map (λ = 0.15, α = 7e-5). Detectors mask
positions of every pyramid level: λ = 0.65, α = 2e-5 of one stage, λ = 0.45, α = 5e-7 of two. The error is summed and
divided by the batch only, so that α belongs to maps of the published size and must be scaled by hand for others.
Inferred, not published: plain transformers (their last block), detectors with queries (set as those of one stage), and
resizing where sizes differ.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.detection import DetectorFacts
from limbeck.errors import UserError
from limbeck.losses.levels import LevelLoss, Projector, choose
from limbeck.losses.pairing import is_neck
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import ModelFacts

MaskKind = Literal["channel", "position"]
PUBLISHED: dict[MaskKind, tuple[float, float]] = {"channel": (7e-5, 0.15), "position": (2e-5, 0.65)}
"""α and λ of classification and of detectors of one stage."""
TWO_STAGE = (5e-7, 0.45)
"""The same of detectors of two stages, whose positions are masked."""


class MGD(nn.Module):
    """Masked generation of one level.

    With A a learnt 1x1 convolution (the identity where widths agree), m the mask, which is 0 with probability λ and
    1 otherwise, and G two 3x3 convolutions with a ReLU between them:

        L = α/B · Σ (G(m · A(S)) - T)²

    Args:
        student_channels: of the student's map.
        teacher_channels: of the teacher's map.
        alpha: α ≥ 0.
        mask_ratio: λ in [0, 1).
        mask: whole channels, or all channels of a position.

    Raises:
        UserError: the mask ratio or α is out of range.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        alpha: float = 7e-5,
        mask_ratio: float = 0.15,
        mask: MaskKind = "channel",
    ) -> None:
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise UserError(f"mgd: mask_ratio is {mask_ratio}; it must be at least 0 and below 1.")
        if not alpha >= 0:
            raise UserError(f"mgd: alpha is {alpha}; it must not be negative.")
        self.alpha, self.mask_ratio = alpha, mask_ratio
        self.mask: MaskKind = mask
        self.align = Projector(student_channels, teacher_channels, bias=True)
        self.generator = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(
        self,
        student_map: Float[Tensor, "B Cs H W"],
        teacher_map: Float[Tensor, "B Ct H W"],
        noise: Float[Tensor, "B c h w"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of one level.

        Args:
            student_map: (B, student_channels, H, W).
            teacher_map: (B, teacher_channels, H, W); receives no gradient.
            noise: uniform in [0, 1), (B, teacher_channels, 1, 1) or (B, 1, H, W) according to `mask`; what is below
                the mask ratio is masked; drawn if None.

        Returns:
            A scalar in at least float32.
        """
        if noise is None:
            batch, channels, height, width = teacher_map.shape
            shape = (batch, channels, 1, 1) if self.mask == "channel" else (batch, 1, height, width)
            noise = torch.rand(shape, device=teacher_map.device)
        aligned = self.align(student_map.to(next(self.generator.parameters()).dtype))
        generated = self.generator(aligned * (noise >= self.mask_ratio))
        with no_autocast(generated):
            generated, target = comparable(generated, teacher_map)
            return (generated - target).square().sum() * (self.alpha / target.shape[0])


class MGDLoss(LevelLoss):
    """Sum of `MGD` over pairs of levels.

    Without `pairs`: the deepest levels of both models; of what detectors' heads or decoders read, all maps of equal
    stride.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        alpha: α ≥ 0; `auto` is 7e-5 for masked channels, 2e-5 for masked positions, 5e-7 if the teacher is a detector of
            two stages.
        mask_ratio: λ in [0, 1); `auto` is 0.15 for masked channels, 0.65 for masked positions, 0.45 if the teacher is
            a detector of two stages.
        mask: what is masked as a whole, channels or positions; `auto` is positions of detectors, channels otherwise.
        pairs: explicit (student level, teacher level) names instead of the rule above.

    Raises:
        UserError: an option is out of range, or no level can be paired.
    """

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        alpha: float | Literal["auto"] = "auto",
        mask_ratio: float | Literal["auto"] = "auto",
        mask: Literal["auto", "channel", "position"] = "auto",
        pairs: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        chosen = choose(student, teacher, "mgd", pairs)
        every = pairs is not None or is_neck(student.levels) or is_neck(teacher.levels)
        super().__init__(student, teacher, "mgd", chosen if every else chosen[-1:])
        detector = isinstance(teacher, DetectorFacts)
        kind: MaskKind = ("position" if detector else "channel") if mask == "auto" else mask
        two_stage = kind == "position" and isinstance(teacher, DetectorFacts) and teacher.family == "two_stage"
        published_alpha, published_ratio = TWO_STAGE if two_stage else PUBLISHED[kind]
        self.mgd = nn.ModuleList(
            MGD(
                own.channels,
                other.channels,
                published_alpha if alpha == "auto" else alpha,
                published_ratio if mask_ratio == "auto" else mask_ratio,
                kind,
            )
            for own, other in self.levels
        )

    def compare(self, index: int, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """See `MGD.forward`."""
        loss: Tensor = self.mgd[index](student_map, teacher_map)
        return loss
