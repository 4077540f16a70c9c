"""Feeding a plain vision transformer only some patches, fewer and fewer, and keeping track of which these are.

SMI (arXiv:2510.27186) drops patches that the class token ignores, early, and never feeds them again; they stay blank. PRI
(arXiv:2509.23235) takes out the most important patches at even intervals as finished output, and goes on with the others.
Attention costs the square of the number of patches and the rest of a block its number, so both save time.

Inferred: PRI's published output is one sparse picture for each piece. Here the pieces also make up one whole picture
("whole"), which any student can be shown; the published form is "pieces".
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limbeck.models.attention import reading_attention
from limbeck.models.base import VisionModel
from limbeck.models.kept_patches import keeping_patches
from limbeck.outputs import Request


@dataclass(frozen=True)
class Sparsity:
    """When how many patches leave the course, which, and what becomes of them.

    Attributes:
        moments: shares of all iterations, in (0, 1) and rising.
        left: share of all patches that is still fed after each.
        release: which leave: those with the least or the most class attention, or any.
        output: "blank" turns patches that left into the teacher's mean colour, "whole" keeps them as they were then,
            "pieces" gives, for each moment and the end, a picture of what left there with the rest blank.
    """

    moments: tuple[float, ...]
    left: tuple[float, ...]
    release: Literal["least", "most", "random"]
    output: Literal["blank", "whole", "pieces"]

    def at(self, iterations: int) -> dict[int, float]:
        """For each step before which patches leave, the share left after it; moments on one step count as one."""
        found = {max(1, round(moment * iterations)): left for moment, left in zip(self.moments, self.left, strict=True)}
        return {step: left for step, left in found.items() if step < iterations}


def dropping(share: float, moments: tuple[float, ...]) -> Sparsity:
    """SMI: at each moment the `share` of the remaining patches with the least class attention leaves."""
    return Sparsity(moments, tuple((1 - share) ** (k + 1) for k in range(len(moments))), "least", "blank")


def rebirth(
    pieces: int, choose: Literal["attention", "random"] = "attention", output: Literal["whole", "pieces"] = "whole"
) -> Sparsity:
    """PRI: `pieces` equal parts of the patches are finished one after another, the most important first."""
    moments = tuple(k / pieces for k in range(1, pieces))
    return Sparsity(moments, tuple(1 - m for m in moments), "most" if choose == "attention" else "random", output)


class PatchCourse:
    """Which patches of a batch are still fed, and what the others looked like when they left.

    Args:
        sparsity: when which leave.
        grid: (rows, columns) of the teacher's patches.
        images: (B, 3, H, W) at the start; H and W are multiples of the grid.
        iterations: of the whole course.

    Attributes:
        kept: (B, M) int64, the patches still fed, ascending, in row-major order of the grid.
        piece: (B, rows · columns) int64, at which moment each left, counted from 0; the last number for those still fed.
        fed: patches fed so far, of one picture, over all steps.
    """

    def __init__(self, sparsity: Sparsity, grid: tuple[int, int], images: Tensor, iterations: int) -> None:
        self.sparsity = sparsity
        self.grid = grid
        self.patch = images.shape[-2] // grid[0], images.shape[-1] // grid[1]
        self.moments = sparsity.at(iterations)
        count = grid[0] * grid[1]
        self.kept = torch.arange(count, device=images.device).expand(len(images), -1).clone()
        self.piece = torch.full((len(images), count), len(self.moments), device=images.device)
        self.fed = 0
        self._finished = images.detach().clone()
        self._left = 0

    @property
    def count(self) -> int:
        """Patches of a whole picture."""
        return self.grid[0] * self.grid[1]

    def leaves_at(self, step: int) -> bool:
        """Whether patches leave before this step."""
        return step in self.moments

    def leave(self, step: int, images: Tensor, attention: Tensor) -> None:
        """Let patches leave.

        Args:
            step: one for which `leaves_at` holds.
            images: as they are now; what leaves is copied.
            attention: (B, M), the importance of each kept patch.
        """
        left = max(1, math.floor(self.count * self.moments[step] + 1e-6))
        if self.sparsity.release == "random":
            attention = torch.rand(attention.shape).to(attention.device)
        order = attention.argsort(dim=1, descending=self.sparsity.release != "most", stable=True)
        stay = order[:, :left].sort(dim=1).values
        remaining = self.kept.gather(1, stay)
        is_fed = torch.zeros_like(self.piece, dtype=torch.bool).scatter_(1, remaining, True)
        was_fed = torch.zeros_like(is_fed).scatter_(1, self.kept, True)
        self.piece[was_fed & ~is_fed] = self._left
        self._left += 1
        self._finished = torch.where(self.pixels(was_fed), images.detach(), self._finished)
        self.kept = remaining

    def hold(self, images: Tensor) -> Tensor:
        """The pictures with every patch that left exactly as it was then."""
        if not self._left:
            return images
        is_fed = self.piece == len(self.moments)
        return torch.where(self.pixels(is_fed), images, self._finished)

    def pixels(self, patches: Tensor) -> Tensor:
        """(B, 1, H, W) of (B, rows · columns): each patch's value at all of its pixels."""
        squares = patches.view(-1, 1, *self.grid)
        return squares.repeat_interleave(self.patch[0], 2).repeat_interleave(self.patch[1], 3)

    def finish(self, images: Tensor) -> tuple[Tensor, int]:
        """The output, and how many pictures of it stand for one of `images` (one whole batch after another).

        Blank is 0 in normalised units, the teacher's mean colour.
        """
        whole = self.hold(images.detach())
        if self.sparsity.output == "whole" or not self._left:
            return whole, 1
        last = len(self.moments)
        if self.sparsity.output == "blank":
            return whole * self.pixels(self.piece == last), 1
        parts = [whole * self.pixels(self.piece == part) for part in range(last + 1)]
        return torch.cat(parts), len(parts)


def moved_patches(
    kept: Tensor, grid: tuple[int, int], patch: tuple[int, int], roll: tuple[int, int], flip: bool
) -> Tensor:
    """Where kept patches lie after the picture was rolled and then mirrored; rolls count as the nearest whole patches.

    Args:
        kept: (B, M) int64 in row-major order of the grid.
        grid: (rows, columns).
        patch: (height, width) of a patch in pixels.
        roll: (rows, columns) in pixels, as in `augment.Drawn`.
        flip: mirrored left to right after the roll.

    Returns:
        (B, M), in the order of `kept`.
    """
    rows = (kept // grid[1] + math.floor(roll[0] / patch[0] + 0.5)) % grid[0]
    columns = (kept % grid[1] + math.floor(roll[1] / patch[1] + 0.5)) % grid[1]
    if flip:
        columns = grid[1] - 1 - columns
    return rows * grid[1] + columns


@torch.no_grad()
def class_attention(teacher: VisionModel, inputs: Tensor, kept: Tensor | None) -> Tensor:
    """How much the class token of the last block attends to each fed patch, mean over heads.

    Args:
        teacher: a plain vision transformer.
        inputs: (B, 3, *input_size), normalised.
        kept: (B, M) patches to feed; None is all.

    Returns:
        (B, M).
    """
    with keeping_patches(teacher, kept), reading_attention(teacher) as attentions:
        teacher.read(inputs, Request())
        return attentions[-1].class_attention().mean(1)
