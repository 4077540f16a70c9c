"""MaskAQ's comparison of where teacher and student attend (ICML 2026, arXiv:2606.04373).

It is minimised, beside the other terms: pictures on which the student attends as the teacher does, in the patches that
matter to the teacher. A negative weight seeks the contrary. Published for a student that is the quantised teacher;
inferred: the factor 1/sqrt(d) of the scores (widths may differ), the pairing of blocks and the resizing of grids.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.precision import no_autocast
from limbeck.models.attention import Attention
from limbeck.models.base import VisionModel
from limbeck.synthesis.priors.attention_rows import require_attention
from limbeck.synthesis.priors.base import Needs, Prior, Seen
from limbeck.synthesis.priors.precision import full


def class_scores(attention: Attention) -> Tensor:
    """(B, N): scaled dot products of the class token's query with the patches' keys, averaged over heads.

    Without a class token, the mean over all patches' queries.
    """
    query, key = full(attention.query), full(attention.key)[:, :, attention.prefix :]
    has_class = attention.prefix and attention.has_class
    asking = query[:, :, :1] if has_class else query[:, :, attention.prefix :].mean(2, keepdim=True)
    return ((asking * attention.scale) @ key.transpose(-2, -1)).squeeze(2).mean(1)


def masked_difference(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Σ |a_t - a_s| · m / Σ m, over images and patches of each block, averaged over blocks.

    Args:
        teacher, student: (L, B, N).
        mask: (B, N), m; not zero everywhere.

    Returns:
        A scalar.
    """
    return ((teacher - student).abs() * mask).sum((1, 2)).mean() / mask.sum()


def top_patches(scores: Tensor, ratio: float, drop: float = 0.0) -> Tensor:
    """1 at the patches with the largest scores, 0 elsewhere, a random share of the former left out.

    Args:
        scores: (B, N).
        ratio: share of the patches that count, at least one.
        drop: share of these that is left out; at least one stays. Which ranks is drawn once for all images.

    Returns:
        (B, N), without gradient.
    """
    count = max(1, int(scores.shape[1] * ratio))
    stay = max(1, round(count * (1 - drop)))
    ranks = torch.randperm(count)[:stay].to(scores.device)
    best = scores.detach().topk(count, dim=1).indices.index_select(1, ranks)
    return torch.zeros_like(scores).scatter(1, best, 1.0)


class AttentionDisagreement(Prior):
    """`masked_difference` of the two models' `class_scores`. Published weight 0.1.

    The mask holds the patches with the largest scores of the teacher, averaged over its blocks. Student blocks are paired
    with the teacher's at the same relative depth, and resized where their grids differ.

    Args:
        teacher: a plain transformer: all blocks see the whole image on one grid.
        first_ratio, last_ratio: share of the patches in the mask when a batch begins and when it ends.
        drop: share of the mask left out at random at every step.

    Raises:
        UserError: the teacher has no attention that can be read, or a share is none; when called, blocks do not correspond.
    """

    needs = Needs(attention=True, student_attention=True)

    def __init__(
        self, teacher: VisionModel, *, first_ratio: float = 0.5, last_ratio: float = 0.1, drop: float = 0.3
    ) -> None:
        require_attention(teacher, "The disagreement of attention")
        for name, value in {"first_ratio": first_ratio, "last_ratio": last_ratio, "drop": drop}.items():
            if not 0 <= value <= 1:
                raise UserError(f"disagreement of attention: {name} is {value}; it must be between 0 and 1.")
        self.first_ratio, self.last_ratio, self.drop = first_ratio, last_ratio, drop
        self.ratio = first_ratio

    def advance(self, progress: float) -> None:
        """Move the mask's share of the patches from the first to the last."""
        self.ratio = self.first_ratio + (self.last_ratio - self.first_ratio) * progress

    def __call__(self, seen: Seen) -> Tensor:
        """Lower where the two attend alike."""
        with no_autocast(seen.shown):
            teacher, student = _paired(seen.attentions, seen.student_attentions)
            mask = top_patches(teacher.detach().mean(0), self.ratio, self.drop)
            return masked_difference(teacher, student, mask)


def _paired(teacher: Sequence[Attention], student: Sequence[Attention]) -> tuple[Tensor, Tensor]:
    """Both (L, B, N), L of the shallower."""
    if not teacher or not student:
        lacking = "teacher" if not teacher else "student"
        raise UserError(
            f"The disagreement of attention compares attention blocks, and none can be read of the {lacking}. Leave the term "
            "out (mimiq: student_attention=0)."
        )
    length = min(len(teacher), len(student))
    theirs, ours = (
        [blocks[(index + 1) * len(blocks) // length - 1] for index in range(length)] for blocks in (teacher, student)
    )
    scores = [class_scores(one) for one in theirs]
    resized = [_on_grid(class_scores(one), one, other) for one, other in zip(ours, theirs, strict=True)]
    if len({tuple(one.shape) for one in (*scores, *resized)}) > 1:
        raise UserError(
            "The disagreement of attention compares blocks that see the whole image on one grid, and these differ in grid or "
            "see windows. Leave the term out (weight 0)."
        )
    return torch.stack(scores), torch.stack(resized)


def _on_grid(scores: Tensor, own: Attention, other: Attention) -> Tensor:
    if own.grid == other.grid or own.grid is None or other.grid is None:
        return scores
    map_ = scores.unflatten(1, own.grid).unsqueeze(1)
    return F.interpolate(map_, other.grid, mode="bilinear", align_corners=False, antialias=True).flatten(1)
