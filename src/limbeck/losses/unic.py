"""UNIC: learn the features of several teachers at once, with heads for each of them, and now and then leave teachers out.

Sariyildiz, Weinzaepfel, Lucas, Larlus, Kalantidis, "UNIC: Universal Classification Models via Multi-teacher Distillation",
ECCV 2024, arXiv:2408.05088.

Published: teacher features standardised channel by channel; for each teacher and each kind of feature (class token and patches)
a ladder of MLPs, one on every block of the student, whose outputs are added up, hidden width 768 and 3072 for the last;
0.5·(1 - cosine) + 0.5·smooth L1 for each vector, class token and patches averaged; teacher dropping with probability 0.5. No
labels are read. Inferred: the order of averages and the renormalisation, as stated at `drop_teachers`; statistics that are taken
before training instead of followed during it (`limbeck.losses.feature_scale`); students without a class token, for which the
mean of each map stands; pyramids, whose stages are the rungs; the last rung, which reads the pooled vector and the map after
the final norm, so that it is these that users get which are taught; and resizing to each teacher's grid.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.call_checks import require_at_least, require_share
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss, Pairing
from limbeck.losses.feature_kd import FeatureHead, cosine_smooth_l1
from limbeck.losses.feature_scale import Standardisation, Standardiser, fit_all
from limbeck.losses.grids import grid_of, resize, tokens
from limbeck.losses.kd import require_classifiers
from limbeck.losses.last_maps import last_map, map_of, request_of
from limbeck.outputs import Level, ModelFacts, Outputs, Request


def drop_teachers(
    losses: Float[Tensor, "B T"], drop: float = 0.5, noise: Float[Tensor, "B T"] | None = None
) -> Float[Tensor, " B"]:
    """For each image the mean of the losses of the teachers that are kept: Σ_t k_t·l_t / Σ_t k_t.

    k is 1 for the teacher with the image's largest loss, of equal ones the first; for each other, independently, 0 with
    probability `drop`, else 1. Which one is largest receives no gradient.

    Args:
        losses: (B, T), of each image and teacher.
        drop: probability in [0, 1].
        noise: (B, T), uniform in [0, 1), of which what is below `drop` is dropped; drawn if None.

    Returns:
        (B,); with one teacher its losses.
    """
    images, teachers = losses.shape
    if teachers == 1:
        return losses[:, 0]
    if noise is None:
        noise = torch.rand(images, teachers, device=losses.device)
    worst = F.one_hot(losses.detach().argmax(1), teachers).bool()
    kept = (worst | (noise >= drop)).to(losses.dtype)
    return (kept * losses).sum(1) / kept.sum(1)


class Ladder(nn.Module):
    """Sum over rungs of an MLP of each: from what a student has at every depth to one kind of feature of one teacher.

    Args:
        widths: of the rungs, shallow to deep.
        out_channels: of the teacher.
        hidden: width inside the MLPs.
        last_hidden: the same of the last one.
    """

    def __init__(self, widths: Sequence[int], out_channels: int, hidden: int, last_hidden: int) -> None:
        super().__init__()
        inside = [hidden] * (len(widths) - 1) + [last_hidden]
        self.rungs = nn.ModuleList(
            FeatureHead(width, out_channels, "mlp", own) for width, own in zip(widths, inside, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """One (..., width) of each rung, as (..., out_channels)."""
        return torch.stack([rung(of) for rung, of in zip(self.rungs, features, strict=True)]).sum(0)


class TeacherHeads(nn.Module):
    """What is learnt and what is known of one teacher: a ladder and the standardised features of each kind.

    Args:
        student: what it reads, pooled and as maps, shallow to deep: the widths of both.
        teacher: facts of the teacher.
        level: its map.
        standardise: see `limbeck.losses.feature_scale`.
        hidden, last_hidden: see `Ladder`.
    """

    def __init__(
        self,
        student: tuple[Sequence[int], Sequence[int]],
        teacher: ModelFacts,
        level: Level,
        standardise: Standardisation,
        hidden: int,
        last_hidden: int,
    ) -> None:
        super().__init__()
        self.level = level
        self.pooled_ladder = Ladder(student[0], teacher.pooled_channels, hidden, last_hidden)
        self.patch_ladder = Ladder(student[1], level.channels, hidden, last_hidden)
        self.pooled_scale = Standardiser(teacher.pooled_channels, standardise, "unic")
        self.patch_scale = Standardiser(level.channels, standardise, "unic")

    def forward(
        self, vectors: Sequence[Tensor], maps: Sequence[Tensor], teacher: Outputs, cosine: float, smooth_l1: float
    ) -> Float[Tensor, " B"]:
        """The mean of the losses of the pooled vector and of the patches, of every image.

        Args:
            vectors: of the student, (B, C) of each rung.
            maps: of the student, (B, C, H, W) of each rung.
            teacher: what this teacher says.
            cosine, smooth_l1: see `cosine_smooth_l1`.
        """
        pooled, patches = self.features(teacher)
        grid = grid_of(map_of(teacher, self.level))
        own = self.patch_ladder([tokens(resize(of, grid)) for of in maps])
        of_pooled = cosine_smooth_l1(self.pooled_ladder(vectors), self.pooled_scale(pooled), cosine, smooth_l1)
        of_patches = cosine_smooth_l1(own, self.patch_scale(patches), cosine, smooth_l1)
        return (of_pooled + of_patches.mean(1)) / 2

    def features(self, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """(B, C) pooled and (B, N, C) patches of this teacher, as they are."""
        return _pooled(teacher), tokens(map_of(teacher, self.level))


class UNIC(DistillationLoss):
    """Mean over images of `drop_teachers` of each teacher's loss, which is the mean of those of pooled vector and patches.

    The loss of the pooled vector is `cosine_smooth_l1` of it; that of the patches is the mean of `cosine_smooth_l1` over them.
    It works with one teacher too, where none is dropped.

    Args:
        student: facts of the student.
        teacher: facts of one teacher, or of several taken as one.
        drop: probability with which a teacher that is not an image's worst is left out.
        cosine: weight of the directions.
        smooth_l1: weight of the entries.
        ladder: one MLP for each level of the student; without it the last one alone.
        hidden: width inside the MLPs but the last.
        last_hidden: width inside the last.
        standardise: `channel`, `phi_s` or `off`; see `limbeck.losses.feature_scale`.
        calibration_images: training images on which the teachers' features are measured before training.

    Raises:
        UserError: a model is a detector, or offers no map, or an option is out of range.
    """

    reads_members: ClassVar[bool] = True

    def __init__(
        self,
        student: ModelFacts,
        teacher: ModelFacts,
        *,
        drop: float = 0.5,
        cosine: float = 0.5,
        smooth_l1: float = 0.5,
        ladder: bool = True,
        hidden: int = 768,
        last_hidden: int = 3072,
        standardise: Standardisation = "channel",
        calibration_images: int = 2048,
    ) -> None:
        super().__init__(student, teacher)
        teachers = teacher.members or (teacher,)
        require_classifiers("unic", student, *teachers)
        require_share("unic", drop=drop)
        require_at_least("unic", 0, cosine=cosine, smooth_l1=smooth_l1)
        require_at_least("unic", 1, hidden=hidden, last_hidden=last_hidden)
        require_at_least("unic", 2, calibration_images=calibration_images)
        if not (cosine or smooth_l1):
            raise UserError("unic: cosine and smooth_l1 are both 0, so nothing would be learnt. Set one.")
        self.drop, self.cosine, self.smooth_l1 = drop, cosine, smooth_l1
        self._calibration_images = calibration_images if standardise != "off" else 0
        self.several = bool(teacher.members)

        self.own = last_map("unic", student)
        # The deepest level is read after the final norm where there is one, not before it as well.
        self.below: tuple[Level, ...] = student.levels[:-1] if ladder else ()
        last = request_of(self.own, pooled=True)
        self.student_request = replace(
            last, levels=(*(level.name for level in self.below), *last.levels), class_tokens=bool(self.below)
        )
        others = tuple(last_map("unic", of) for of in teachers)
        asked = tuple(request_of(level, pooled=True) for level in others)
        self.teacher_request = Request(members=asked) if self.several else asked[0]
        if not self.several:
            self.pairs = (Pairing("pooled", "pooled"), Pairing(self.own.name, others[0].name))
        self.notes = _notes(self.own, self.below, teachers, others)

        inner = [level.channels for level in self.below]
        widths = ([*inner, student.pooled_channels], [*inner, self.own.channels])
        self.heads = nn.ModuleList(
            TeacherHeads(widths, of, level, standardise, hidden, last_hidden)
            for of, level in zip(teachers, others, strict=True)
        )

    @property
    def calibration_images(self) -> int:
        """As the option says; 0 without standardising."""
        return self._calibration_images

    def calibrate(self, teacher: Iterable[Outputs]) -> None:
        """Measure every teacher's features; see `limbeck.losses.feature_scale`."""
        scales = [scale for heads in self._teacher_heads for scale in (heads.pooled_scale, heads.patch_scale)]
        features = (
            [
                of
                for heads, answer in zip(self._teacher_heads, self._answers(outputs), strict=True)
                for of in heads.features(answer)
            ]
            for outputs in teacher
        )
        fit_all(scales, features)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """See the class; the target is not read."""
        return drop_teachers(torch.stack(self.teacher_losses(student, teacher), 1), self.drop).mean()

    def teacher_losses(self, student: Outputs, teacher: Outputs) -> list[Float[Tensor, " B"]]:
        """Of each teacher the loss of every image, before any is dropped."""
        vectors = [*(_class_token(student, level) for level in self.below), _pooled(student)]
        maps = [*(student.maps[level.name] for level in self.below), map_of(student, self.own)]
        return [
            heads(vectors, maps, answer, self.cosine, self.smooth_l1)
            for heads, answer in zip(self._teacher_heads, self._answers(teacher), strict=True)
        ]

    @property
    def _teacher_heads(self) -> list[TeacherHeads]:
        return [cast(TeacherHeads, heads) for heads in self.heads]

    def _answers(self, teacher: Outputs) -> tuple[Outputs, ...]:
        return teacher.members if self.several else (teacher,)


def _pooled(outputs: Outputs) -> Tensor:
    assert outputs.pooled is not None
    return outputs.pooled


def _class_token(student: Outputs, level: Level) -> Tensor:
    """(B, C) of a level; of a network without class tokens the mean of its map."""
    own = student.class_tokens.get(level.name)
    return student.maps[level.name].mean((2, 3)) if own is None else own


def _notes(
    own: Level, below: Sequence[Level], teachers: Sequence[ModelFacts], others: Sequence[Level]
) -> tuple[str, ...]:
    """What is read of every model, and which grids are unequal."""
    rungs = [*(level.name for level in below), f"{own.name} with the pooled vector"]
    notes = [f"unic: heads read the student's {', '.join(rungs)}."]
    for facts, level in zip(teachers, others, strict=True):
        resized = (
            ""
            if level.grid == own.grid
            else f", to whose {level.grid[0]}x{level.grid[1]} cells the student's maps are resized"
        )
        notes.append(f"unic: of the teacher {facts.name} {level.name} and the pooled vector are learnt{resized}.")
    return tuple(notes)
