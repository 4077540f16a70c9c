"""ViTKD: mimic the first two blocks, regenerate the last one from a masked half.

Yang, Li, Zeng, Li, Yuan, Li, "ViTKD: Feature-based Knowledge Distillation for Vision Transformers", CVPR 2024
workshops, arXiv:2209.02432.

Both parts are sums over tokens and channels divided by the batch only, so the published α = 3e-5 and β = 3e-6
belong to 196 tokens: for N tokens, multiply both by 196 / N to keep the same weight per token. Inferred, not
published: pyramids (whose first two levels differ in width), unequal grids, non-square grids.
"""

from collections.abc import Sequence
from math import floor, isqrt
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss, Pairing
from limbeck.losses.grids import Grid, grid_of, resize, tokens
from limbeck.losses.levels import on_one_picture
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import Features, ModelFacts, Request

PUBLISHED_TOKENS = 196


def random_mask(noise: Float[Tensor, "B N"], mask_ratio: float) -> Bool[Tensor, "B N"]:
    """True on the tokens to mask: all but the ⌊N·(1-ratio)⌋ tokens of least noise, in every row alike in number.

    Args:
        noise: (B, N), uniform.
        mask_ratio: λ in (0, 1).
    """
    # A float product such as 10·(1-0.9) falls just short of the whole number that is meant.
    kept = floor(noise.shape[1] * (1 - mask_ratio) + 1e-9)
    return noise.argsort(dim=1).argsort(dim=1) >= kept


class ViTKD(nn.Module):
    """Mimicking of shallow tokens and masked generation of deep ones.

    With A_l, A learnt linear maps (the identity where widths agree), G two 3x3 convolutions with a ReLU between
    them, m the mask and x the aligned deep tokens with masked ones replaced by one learnt token:

        L = α/B · Σ ‖A_l(S_l) - T_l‖² + β/(λ·B) · Σ m·‖G(x) - T‖²

    Args:
        student_dim: width of the student's deep tokens, and of its shallow ones.
        teacher_dim: the same of the teacher.
        alpha: α, weight of the mimicking sum.
        beta: β, weight of the generation sum.
        mask_ratio: λ in (0, 1).
        shallow_dims: (student, teacher) widths of each shallow layer where these differ from the deep ones; two
            layers of the deep widths if None.

    Raises:
        UserError: the mask ratio or a weight is out of range.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        alpha: float = 3e-5,
        beta: float = 3e-6,
        mask_ratio: float = 0.5,
        *,
        shallow_dims: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise UserError(f"vitkd: mask_ratio is {mask_ratio}; it must lie between 0 and 1.")
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise UserError(f"vitkd: {name} is {value}; it must not be negative.")
        self.alpha, self.beta, self.mask_ratio = alpha, beta, mask_ratio
        dims = [(student_dim, teacher_dim)] * 2 if shallow_dims is None else shallow_dims
        self.align_shallow = nn.ModuleList(_align(own, other) for own, other in dims)
        self.align_deep = _align(student_dim, teacher_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, teacher_dim))
        self.generator = nn.Sequential(
            nn.Conv2d(teacher_dim, teacher_dim, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_dim, teacher_dim, 3, padding=1),
        )

    def forward(
        self,
        student_shallow: Tensor | Sequence[Tensor],
        teacher_shallow: Tensor | Sequence[Tensor],
        student_deep: Float[Tensor, "B N Ds"],
        teacher_deep: Float[Tensor, "B N Dt"],
        noise: Float[Tensor, "B N"] | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, ""]:
        """The sum of both parts.

        Args:
            student_shallow: (B, 2, N, Ds), or one (B, N, D) per layer; patch tokens only, before the final norm.
            teacher_shallow: the same of the teacher; receives no gradient.
            student_deep: (B, N, Ds) patch tokens after the final norm.
            teacher_deep: (B, N, Dt); receives no gradient.
            noise: (B, N) decides the mask; drawn if None.
            grid: (height, width) of the deep tokens in raster order; square if None.

        Returns:
            A scalar in at least float32.

        Raises:
            UserError: N is no square number and no grid is given.
        """
        mimicking = self.mimic(_layers(student_shallow), _layers(teacher_shallow))
        return mimicking + self.generate(student_deep, teacher_deep, noise, grid)

    def mimic(self, student_layers: Sequence[Tensor], teacher_layers: Sequence[Tensor]) -> Float[Tensor, ""]:
        """α/B times the sum over layers, tokens and channels of the squared error, (B, N, D) each."""
        sums = []
        for align, own, other in zip(self.align_shallow, student_layers, teacher_layers, strict=True):
            aligned, target = comparable(align(own.to(self.mask_token.dtype)), other)
            with no_autocast(aligned):
                sums.append((aligned - target).square().sum())
        return torch.stack(sums).sum() * (self.alpha / student_layers[0].shape[0])

    def generate(
        self,
        student_deep: Float[Tensor, "B N Ds"],
        teacher_deep: Float[Tensor, "B N Dt"],
        noise: Float[Tensor, "B N"] | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, ""]:
        """β/(λ·B) times the sum of the squared error on masked tokens; arguments as in `forward`."""
        batch, count, _ = student_deep.shape
        height, width = _square(count) if grid is None else grid
        if noise is None:
            noise = torch.rand(batch, count, device=student_deep.device)
        masked = random_mask(noise, self.mask_ratio).unsqueeze(2)
        aligned = self.align_deep(student_deep.to(self.mask_token.dtype))
        visible = torch.where(masked, self.mask_token.to(aligned.dtype), aligned)
        generated = tokens(self.generator(visible.transpose(1, 2).reshape(batch, -1, height, width)))
        with no_autocast(generated):
            generated, target = comparable(generated, teacher_deep)
            return ((generated - target).square() * masked).sum() * (self.beta / (self.mask_ratio * batch))


class ViTKDLoss(DistillationLoss):
    """`ViTKD` between two models: their first two levels, and the last map after the final norm.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        alpha: α, weight of the mimicking sum.
        beta: β, weight of the generation sum.
        mask_ratio: λ in (0, 1).

    Raises:
        UserError: a model has fewer than two levels or no final map, or an option is out of range.
    """

    matches_blocks: ClassVar[bool] = True

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        alpha: float = 3e-5,
        beta: float = 3e-6,
        mask_ratio: float = 0.5,
    ) -> None:
        super().__init__(student, teacher)
        for facts in (student, teacher):
            if len(facts.levels) < 2 or facts.final is None:
                raise UserError(
                    f"vitkd reads the first two levels and the final map, but {facts.name} has {len(facts.levels)} "
                    f"levels and {'a' if facts.final else 'no'} final map. Use another model, or another method "
                    "(see `limbeck methods`)."
                )
        student, teacher = on_one_picture(student, teacher)
        assert student.final is not None
        assert teacher.final is not None
        shallow = tuple(zip(student.levels[:2], teacher.levels[:2], strict=True))
        levels = (*shallow, (student.final, teacher.final))
        self.pairs = tuple(Pairing(own.name, other.name) for own, other in levels)
        self.student_request = Request(tuple(own.name for own, _ in shallow), final=True)
        self.teacher_request = Request(tuple(other.name for _, other in shallow), final=True)
        self.vitkd = ViTKD(
            student.final.channels,
            teacher.final.channels,
            alpha,
            beta,
            mask_ratio,
            shallow_dims=[(own.channels, other.channels) for own, other in shallow],
        )
        notes = [
            f"vitkd: student {own.name} ({own.grid[0]}x{own.grid[1]}) is resized to teacher {other.name} "
            f"({other.grid[0]}x{other.grid[1]})."
            for own, other in levels
            if own.grid != other.grid
        ]
        counts = sorted({other.grid[0] * other.grid[1] for _, other in levels})
        if counts != [PUBLISHED_TOKENS]:
            notes.append(
                f"vitkd: alpha and beta were published for {PUBLISHED_TOKENS} tokens and grow with their number; "
                f"this teacher has {' and '.join(map(str, counts))}."
            )
        self.notes = tuple(notes)

    def forward(self, student: Features, teacher: Features, target: object = None) -> Tensor:
        """See `ViTKD.forward`; the target is not read."""
        assert student.final is not None
        assert teacher.final is not None
        own = [
            tokens(resize(student.maps[pair.student], grid_of(teacher.maps[pair.teacher]))) for pair in self.pairs[:2]
        ]
        other = [tokens(teacher.maps[pair.teacher]) for pair in self.pairs[:2]]
        grid = grid_of(teacher.final)
        loss: Tensor = self.vitkd(own, other, tokens(resize(student.final, grid)), tokens(teacher.final), grid=grid)
        return loss


def _align(student_dim: int, teacher_dim: int) -> nn.Module:
    return nn.Identity() if student_dim == teacher_dim else nn.Linear(student_dim, teacher_dim)


def _layers(shallow: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return shallow.unbind(1) if isinstance(shallow, Tensor) else shallow


def _square(count: int) -> Grid:
    side = isqrt(count)
    if side * side != count:
        raise UserError(f"vitkd: {count} tokens do not fill a square; pass grid=(height, width).")
    return side, side
