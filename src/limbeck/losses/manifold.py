"""Fine-grained manifold distillation.

Hao, Guo, Jia, Han, Tang, Zhang, Hu, Wang, "Learning Efficient Vision Transformers via Fine-Grained Manifold
Distillation", NeurIPS 2022, arXiv:2107.01378.

Cosines between patch tokens are matched instead of tokens, so that no projector is needed and widths may differ.
Reductions are means over map entries and over layers, to which the published weights 4 / 0.1 / 0.2 belong; the
paper's own notation has sums. The published recipe adds soft labels at temperature 1 with weight 1, gives the
labels no weight, and trains the student without drop path. Inferred, not published: pairing and resizing for
pyramids and for unequal depths. `manifold_full` is exact algebra on the paper's undecoupled loss.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss, Pairing
from limbeck.losses.grids import GridRule, check_grids, common_grid, match_grid, tokens
from limbeck.losses.levels import on_one_picture, require_levels
from limbeck.losses.pairing import (
    LevelPair,
    Levels,
    by_stride,
    counterparts,
    equal_stride,
    first_and_last,
    is_plain,
    named,
    stride_notes,
)
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import Features, ModelFacts, Request


def manifold_intra(
    student_tokens: Float[Tensor, "B N Ds"], teacher_tokens: Float[Tensor, "B N Dt"]
) -> Float[Tensor, ""]:
    """Relations among the patches of one image: mean over (B, N, N) of (cos_student - cos_teacher)².

    Args:
        student_tokens: (B, N, Ds) patch tokens without prefix tokens.
        teacher_tokens: (B, N, Dt), the same positions; receives no gradient.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_tokens):
        return _gram_distance(*_unit(student_tokens, teacher_tokens))


def manifold_inter(
    student_tokens: Float[Tensor, "B N Ds"], teacher_tokens: Float[Tensor, "B N Dt"]
) -> Float[Tensor, ""]:
    """Relations among images at one position: mean over (N, B, B) of (cos_student - cos_teacher)².

    Args, returns: as `manifold_intra`. B is the batch of this process.
    """
    with no_autocast(student_tokens):
        student, teacher = _unit(student_tokens, teacher_tokens)
        return _gram_distance(student.transpose(0, 1), teacher.transpose(0, 1))


def manifold_random(
    student_tokens: Float[Tensor, "B N Ds"],
    teacher_tokens: Float[Tensor, "B N Dt"],
    num_patches: int = 192,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Relations among K patches drawn from the whole batch: mean over (K, K) of (cos_student - cos_teacher)².

    Args:
        student_tokens: (B, N, Ds).
        teacher_tokens: (B, N, Dt); receives no gradient.
        num_patches: K, drawn without replacement, the same for both models; from B·N on, all patches are used and
            the value is that of `manifold_full`.
        generator: source of the draw; the device's default one if None.

    Returns:
        A scalar in at least float32.
    """
    with no_autocast(student_tokens):
        student, teacher = _unit(student_tokens, teacher_tokens)
        return _random_distance(student, teacher, num_patches, generator)


def manifold_full(
    student_tokens: Float[Tensor, "B N Ds"], teacher_tokens: Float[Tensor, "B N Dt"]
) -> Float[Tensor, ""]:
    """Relations among all P = B·N patches of the batch: mean over (P, P) of (cos_student - cos_teacher)², exactly.

    With unit rows S (P, Ds) and T (P, Dt), ‖SSᵀ - TTᵀ‖² = ‖SᵀS‖² + ‖TᵀT‖² - 2‖SᵀT‖² (Frobenius norms), so that
    the (P, P) maps never exist: O(P·D²) time and O(D²) memory. In float32 the cancellation leaves a relative
    error of about 1e-5 at a mean of 5e-5 and 4e-4 at 5e-7, where the value may come out slightly negative.

    Args, returns: as `manifold_intra`.
    """
    with no_autocast(student_tokens):
        return _full_distance(*_unit(student_tokens, teacher_tokens))


class Manifold(DistillationLoss):
    """The weighted manifold terms, averaged over the paired layers.

    Without `pairs`: two plain transformers use their first and last blocks (all by relative depth where one has
    fewer than `first + last`); two pyramids use the levels of equal stride, or nearest strides where none is equal;
    a pyramid and a plain transformer use the pyramid's stages and as many evenly spaced blocks. What detectors' heads
    or decoders read is paired by equal stride.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        intra: weight of `manifold_intra`; a term of weight 0 is not computed.
        inter: weight of `manifold_inter`.
        random: weight of `manifold_random`.
        full: weight of `manifold_full`.
        num_patches: K of `manifold_random`.
        first: blocks from the front of two plain transformers.
        last: blocks from their back.
        pairs: explicit (student level, teacher level) names instead of the rules above.
        on_grid_mismatch: `resize`, `merge` or `error` (see `grids.match_grid`).
        max_tokens: pyramid levels are reduced to at most so many cells, since the intra map of a 56x56 level takes
            256 times the memory of a 14x14 one; blocks of plain transformers are never reduced.

    Raises:
        UserError: an option is out of range, or no level can be paired.
    """

    matches_blocks: ClassVar[bool] = True

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        intra: float = 4.0,
        inter: float = 0.1,
        random: float = 0.2,
        full: float = 0.0,
        num_patches: int = 192,
        first: int = 4,
        last: int = 4,
        pairs: Sequence[tuple[str, str]] | None = None,
        on_grid_mismatch: GridRule = "resize",
        max_tokens: int = 196,
    ) -> None:
        super().__init__(student, teacher)
        self.weights = {"intra": intra, "inter": inter, "random": random, "full": full}
        _check_options(self.weights, num_patches, first, last, max_tokens)
        self.num_patches = num_patches
        self.on_grid_mismatch: GridRule = on_grid_mismatch
        chosen = named(student, teacher, pairs) if pairs is not None else _choose(student, teacher, first, last)
        self.pairs = tuple(Pairing(*pair) for pair in chosen)
        self.student_request = Request(tuple(pair.student for pair in self.pairs))
        self.teacher_request = Request(tuple(pair.teacher for pair in self.pairs))
        self.max_cells = tuple(
            None if is_plain((student.level(p.student), teacher.level(p.teacher))) else max_tokens for p in self.pairs
        )
        names = [(pair.student, pair.teacher) for pair in self.pairs]
        self.notes = (
            *stride_notes("manifold", student, teacher, names),
            *self._check_grids(*on_one_picture(student, teacher)),
        )

    def forward(self, student: Features, teacher: Features, target: object = None) -> Tensor:
        """Mean over pairs of the weighted terms; the target is not read."""
        layers = [
            self._layer(student.maps[pair.student], teacher.maps[pair.teacher], max_cells)
            for pair, max_cells in zip(self.pairs, self.max_cells, strict=True)
        ]
        return torch.stack(layers).mean()

    def _layer(self, student_map: Tensor, teacher_map: Tensor, max_cells: int | None) -> Tensor:
        with no_autocast(student_map):
            student_map, teacher_map = comparable(student_map, teacher_map)
            student_map, teacher_map = match_grid(student_map, teacher_map, self.on_grid_mismatch, max_cells)
            # Tokens are normalised once for all terms.
            student, teacher = _unit(tokens(student_map), tokens(teacher_map))
            total = student.new_zeros(())
            if self.weights["intra"]:
                total = total + self.weights["intra"] * _gram_distance(student, teacher)
            if self.weights["inter"]:
                total = total + self.weights["inter"] * _gram_distance(student.transpose(0, 1), teacher.transpose(0, 1))
            if self.weights["random"]:
                total = total + self.weights["random"] * _random_distance(student, teacher, self.num_patches, None)
            if self.weights["full"]:
                total = total + self.weights["full"] * _full_distance(student, teacher)
            return total

    def _check_grids(self, student: ModelFacts, teacher: ModelFacts) -> tuple[str, ...]:
        notes = []
        for pair, max_cells in zip(self.pairs, self.max_cells, strict=True):
            own, other = student.level(pair.student).grid, teacher.level(pair.teacher).grid
            check_grids(own, other, self.on_grid_mismatch, max_cells)
            grid = common_grid(own, other, max_cells)
            if (own, other) != (grid, grid):
                notes.append(
                    f"manifold: student {pair.student} ({own[0]}x{own[1]}) and teacher {pair.teacher} "
                    f"({other[0]}x{other[1]}) are compared on {grid[0]}x{grid[1]} cells."
                )
        return tuple(notes)


def _choose(student: ModelFacts, teacher: ModelFacts, first: int, last: int) -> tuple[tuple[str, str], ...]:
    require_levels("manifold", student, teacher)
    own, other = student.levels, teacher.levels
    if is_plain(own) and is_plain(other):
        chosen = first_and_last(own, other, first, last)
    else:
        chosen = counterparts(own, other, len(own) + len(other), _equal_or_nearest)
    return tuple((s.name, t.name) for s, t in chosen)


def _equal_or_nearest(student: Levels, teacher: Levels) -> tuple[LevelPair, ...]:
    return equal_stride(student, teacher) or by_stride(student, teacher)


def _check_options(weights: dict[str, float], num_patches: int, first: int, last: int, max_tokens: int) -> None:
    for name, weight in weights.items():
        if not weight >= 0:
            raise UserError(f"manifold: {name} is {weight}; a weight must not be negative.")
    if not any(weights.values()):
        raise UserError("manifold: intra, inter, random and full are all 0, so nothing would be learnt. Set one.")
    for name, value in (("num_patches", num_patches), ("max_tokens", max_tokens)):
        if value < 1:
            raise UserError(f"manifold: {name} is {value}; it must be at least 1.")
    if first < 0 or last < 0 or first + last < 1:
        raise UserError(f"manifold: first={first} and last={last} choose no block; they must be >= 0, one of them > 0.")


def _unit(student_tokens: Tensor, teacher_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Both in full precision with every token at length 1."""
    student, teacher = comparable(student_tokens, teacher_tokens)
    return F.normalize(student, dim=-1, eps=1e-12), F.normalize(teacher, dim=-1, eps=1e-12)


def _gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosine maps of (..., P, Ds) and (..., P, Dt) unit tokens."""
    return (student @ student.transpose(-2, -1) - teacher @ teacher.transpose(-2, -1)).square().mean()


def _random_distance(student: Tensor, teacher: Tensor, num_patches: int, generator: torch.Generator | None) -> Tensor:
    student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
    count = student.shape[0]
    if num_patches < count:
        device = generator.device if generator is not None else student.device
        rows = torch.randperm(count, generator=generator, device=device)[:num_patches].to(student.device)
        student, teacher = student.index_select(0, rows), teacher.index_select(0, rows)
    return _gram_distance(student, teacher)


def _full_distance(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
    # The identity holds for whatever values enter all three products, so TF32 (which rounds the inputs alike in
    # each) shifts the result no more than it shifts the tokens; bf16 outputs would not be safe.
    own, other, mixed = student.T @ student, teacher.T @ teacher, student.T @ teacher
    return (own.square().sum() + other.square().sum() - 2 * mixed.square().sum()) / student.shape[0] ** 2
