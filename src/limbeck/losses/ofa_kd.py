"""OFA-KD: early exits of the student speak the teacher's language, class scores, whatever its architecture.

Hao, Guo, Han, Tang, Hu, Wang, Xu, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
Distillation", NeurIPS 2023, arXiv:2310.19444.

Published: four exits and the final head with weight 1 each beside labels of weight 1, temperature 1, γ from 1 to 1.5 according
to the pair, students without drop path. Exits of convolutional stages halve the map with separable convolutions down to the last
stage's size; those of transformers merge patches to about 7x7 and attend with 4 heads, in 3, 2, 1 and 1 blocks. A student of 12
blocks leaves after numbers 1, 3, 9 and 11, counted from 0. Inferred: other depths (the same shares of them), other numbers of
stages, what a separable convolution is (depthwise, pointwise, batch norm, ReLU) and how wide (doubled at each halving, up to the
last stage's width), the mean over patches in place of a class token, and convolutional exits for pyramids of attention (Swin).
"""

from collections.abc import Sequence
from math import ceil, log2
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.call_checks import require_at_least, require_positive
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss
from limbeck.losses.grids import Grid, tokens
from limbeck.losses.kd import require_same_classes
from limbeck.losses.levels import require_levels
from limbeck.losses.pairing import Levels, is_plain, named
from limbeck.losses.precision import comparable, no_autocast
from limbeck.outputs import Level, ModelFacts, Outputs, Request

NUM_EXITS = 4
DEPTHS = (2 / 12, 4 / 12, 10 / 12, 1.0)
"""Shares of a plain transformer's blocks after which it is left."""
HEADS = 4
PATCHES = 7
"""Cells a side, about, on which a transformer's exits attend."""


def ofa_loss(
    student_logits: Float[Tensor, "B K"],
    teacher_logits: Float[Tensor, "B K"],
    target: Int[Tensor, " B"] | Float[Tensor, "B K"],
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Cross-entropy with the teacher whose belief in the true class is strengthened.

    With S, T the softmaxes of both logits at temperature τ and y the true class:

        L = -mean_b Σ_c [ (T_c + [c = y])^γ - [c = y] ] · log S_c

    At γ = 1 this is the cross-entropy with the teacher, the same gradient as `kd_loss` at that temperature without its τ²; at a
    larger γ, (T_y + 1)^γ - 1 outgrows T_y and the other classes T_c^γ fade. As published, no factor τ² makes up for
    the smaller gradient at a higher temperature.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K); receives no gradient.
        target: class indices (B,), or soft labels (B, K) of which the arg-max is the true class (as published for Mixup and
            CutMix).
        gamma: γ >= 1.
        temperature: τ > 0.

    Returns:
        A scalar in at least float32; at the optimum not zero.
    """
    index = (target.argmax(dim=1) if target.ndim == 2 else target).long()
    with no_autocast(student_logits):
        student, teacher = comparable(student_logits, teacher_logits)
        truth = F.one_hot(index, student.shape[1]).to(teacher.dtype)
        belief = (F.softmax(teacher / temperature, dim=1) + truth) ** gamma - truth
        return -(belief * F.log_softmax(student / temperature, dim=1)).sum(dim=1).mean()


class ConvolutionalExit(nn.Module):
    """A stage's map, halved by separable convolutions, to class scores.

    Args:
        level: the stage.
        last: the last stage: its size is where halving ends, and its width is the most.
        num_classes: K.
    """

    def __init__(self, level: Level, last: Level, num_classes: int) -> None:
        super().__init__()
        halvings = ceil(log2(max(1.0, *(own / end for own, end in zip(level.grid, last.grid, strict=True)))) - 1e-9)
        width, layers = level.channels, []
        for _ in range(halvings):
            wider = max(width, min(2 * width, last.channels))
            layers.append(
                nn.Sequential(
                    nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False),
                    nn.Conv2d(width, wider, 1, bias=False),
                    nn.BatchNorm2d(wider),
                    nn.ReLU(),
                )
            )
            width = wider
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """(B, C, H, W) as (B, K).

        Raises:
            UserError: there is one image only, whose map ends as one cell, over which batch norm cannot be trained.
        """
        batch, _, height, width = feature_map.shape
        if self.training and len(self.layers) and batch == 1 and max(height, width) <= 2 ** len(self.layers):
            raise UserError(
                "ofa_kd normalises each channel over images and positions and needs at least two values; this batch has 1 "
                "image, whose map ends as 1x1. Raise the batch size, or leave out the last, partial batch."
            )
        logits: Tensor = self.head(self.layers(feature_map.to(self.head.weight.dtype)).mean((2, 3)))
        return logits


class AttentionExit(nn.Module):
    """A transformer's patches, merged to about 7x7, through blocks of attention, to class scores.

    Args:
        level: the block.
        num_blocks: of attention.
        num_classes: K.
    """

    def __init__(self, level: Level, num_blocks: int, num_classes: int) -> None:
        super().__init__()
        self.merged: Grid = (max(1, round(level.grid[0] / PATCHES)), max(1, round(level.grid[1] / PATCHES)))
        width = HEADS * ceil(level.channels / HEADS)
        # To concatenate neighbours and mix them linearly is a convolution that steps by its size.
        self.merge = nn.Conv2d(level.channels, width, self.merged, stride=self.merged)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, HEADS, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(num_blocks)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """(B, C, H, W) as (B, K); a map that is no whole number of groups is filled up with zeros below and at the right."""
        height, width = feature_map.shape[-2:]
        filled = F.pad(feature_map, (0, -width % self.merged[1], 0, -height % self.merged[0]))
        patches = tokens(self.merge(filled.to(self.head.weight.dtype)))
        logits: Tensor = self.head(self.norm(self.blocks(patches)).mean(1))
        return logits


class OFAKD(DistillationLoss):
    """`ofa_loss` at the student's head, plus the sum of those at its exits.

    Without `levels`: a plain transformer is left after 1/6, 1/3, 5/6 and all of its blocks (after every block if there are no
    more than four); a pyramid after its last four stages, or all it has. The exits are thrown away after training.

    Args:
        student: facts of the student.
        teacher: facts of the teacher; nothing of it but its logits is read.
        gamma: γ >= 1; 1.5 is published for DeiT-Ti to ResNet-18, 1 for CIFAR-100.
        temperature: τ > 0.
        head_weight: of the student's own head, >= 0.
        exit_weight: of each exit, >= 0.
        levels: names of the student's levels to leave at instead of the rule above.

    Raises:
        UserError: an option is out of range, the models' classes differ in number, or the student has no such level.
    """

    needs_labels: ClassVar[bool] = True
    matches_blocks: ClassVar[bool] = True

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        gamma: float = 1.0,
        temperature: float = 1.0,
        head_weight: float = 1.0,
        exit_weight: float = 1.0,
        levels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(student, teacher)
        require_same_classes("ofa_kd", student, teacher)
        require_levels("ofa_kd", student)
        require_at_least("ofa_kd", 1, gamma=gamma)
        require_at_least("ofa_kd", 0, head_weight=head_weight, exit_weight=exit_weight)
        require_positive("ofa_kd", temperature=temperature)
        self.gamma, self.temperature = gamma, temperature
        self.head_weight, self.exit_weight = head_weight, exit_weight
        self.exit_names = _exits(student.levels) if levels is None else _named(student, levels)
        self.student_request = Request(levels=self.exit_names)
        found = [student.level(name) for name in self.exit_names]
        self.exits = nn.ModuleList(
            AttentionExit(level, max(1, len(found) - place), student.num_classes)
            if level.kind == "block"
            else ConvolutionalExit(level, student.levels[-1], student.num_classes)
            for place, level in enumerate(found, start=1)
        )
        self.notes = (f"ofa_kd: early exits of the student at {', '.join(self.exit_names)}.",)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See `ofa_loss`.

        Raises:
            UserError: there is no target.
        """
        if target is None:
            raise UserError("ofa_kd reads the label of every image and cannot use unlabelled images; use kd instead.")
        exits = [leave(student.maps[name]) for name, leave in zip(self.exit_names, self.exits, strict=True)]
        terms = torch.stack(
            [ofa_loss(own, teacher.logits, target, self.gamma, self.temperature) for own in (student.logits, *exits)]
        )
        return self.head_weight * terms[0] + self.exit_weight * terms[1:].sum()


def _exits(levels: Levels) -> tuple[str, ...]:
    if not is_plain(levels) or len(levels) <= NUM_EXITS:
        return tuple(level.name for level in levels[-NUM_EXITS:])
    places = dict.fromkeys(max(1, round(share * len(levels))) - 1 for share in DEPTHS)
    return tuple(levels[place].name for place in places)


def _named(student: ModelFacts, levels: Sequence[str]) -> tuple[str, ...]:
    if not levels:
        raise UserError("ofa_kd: levels is an empty list. Name at least one of the student's levels, or leave it out.")
    return tuple(dict.fromkeys(name for name, _ in named(student, student, [(name, name) for name in levels])))
