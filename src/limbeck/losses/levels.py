"""What the methods that compare maps level by level share: the pairs, the projectors, and the sum over pairs.

`fitnets`, `pkd`, `cwd` and `mgd` differ in how two maps of one size are compared, and in which pairs they take.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss, Pairing
from limbeck.losses.grids import grid_of, resize
from limbeck.losses.pairing import LevelPair, by_stride, evenly, is_plain, named, stages
from limbeck.outputs import Level, ModelFacts, Outputs, Request

Pairs = Sequence[tuple[str, str]]


class Projector(nn.Module):
    """A learnt 1x1 convolution to the teacher's width; nothing where the widths agree.

    Args:
        in_channels: of the student's map.
        out_channels: of the teacher's map.
        bias: whether the convolution has one; of no use to a loss that ignores constants added to a channel.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__()
        wanted = in_channels != out_channels
        self.convolution = nn.Conv2d(in_channels, out_channels, 1, bias=bias) if wanted else None

    def forward(self, student_map: Float[Tensor, "B Ci H W"]) -> Float[Tensor, "B Co H W"]:
        """(B, in_channels, H, W) as (B, out_channels, H, W)."""
        if self.convolution is None:
            return student_map
        projected: Tensor = self.convolution(student_map.to(self.convolution.weight.dtype))
        return projected


class LevelLoss(DistillationLoss):
    """Sum over pairs of levels of `compare`, the student's maps resized to the grids of the teacher's.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        method: its name, for messages.
        chosen: (student level, teacher level) names, shallow to deep, of levels that exist.
    """

    def __init__(self, student: ModelFacts, teacher: ModelFacts, method: str, chosen: Pairs) -> None:
        super().__init__(student, teacher)
        self.pairs = tuple(Pairing(*pair) for pair in chosen)
        self.student_request = Request(tuple(dict.fromkeys(pair.student for pair in self.pairs)))
        self.teacher_request = Request(tuple(dict.fromkeys(pair.teacher for pair in self.pairs)))
        self.levels = tuple((student.level(pair.student), teacher.level(pair.teacher)) for pair in self.pairs)
        self.notes = tuple(
            f"{method}: student {pair.student} ({_size(own)}) is resized to teacher {pair.teacher} ({_size(other)})."
            for pair, (own, other) in zip(self.pairs, self.levels, strict=True)
            if own.grid != other.grid
        )

    @abstractmethod
    def compare(
        self, index: int, student_map: Float[Tensor, "B Cs H W"], teacher_map: Float[Tensor, "B Ct H W"]
    ) -> Float[Tensor, ""]:
        """The term of pair number `index`; a scalar in at least float32."""

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """Sum of `compare` over the pairs; the target is not read."""
        terms = []
        for index, pair in enumerate(self.pairs):
            other = teacher.maps[pair.teacher]
            terms.append(self.compare(index, resize(student.maps[pair.student], grid_of(other)), other))
        return torch.stack(terms).sum()


def choose(
    student: ModelFacts, teacher: ModelFacts, method: str, pairs: Pairs | None, num_levels: int = 4
) -> tuple[tuple[str, str], ...]:
    """The user's own pairs, checked; without them, levels of all depths.

    Two pyramids are paired by nearest stride. Of a plain transformer, `num_levels` evenly spaced blocks that end with
    the last stand for its stages, and the other model's deepest ones are paired with them in order.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        method: its name, for messages.
        pairs: what the user gave.
        num_levels: blocks taken of a plain transformer.

    Returns:
        (student level, teacher level) names, shallow to deep.

    Raises:
        UserError: a model offers no level, `num_levels` is not positive, or `pairs` does not fit the models.
    """
    if num_levels < 1:
        raise UserError(f"{method}: num_levels is {num_levels}; it must be at least 1.")
    for facts in (student, teacher):
        if not facts.levels:
            raise UserError(
                f"{method} compares feature maps, but {facts.name} offers none. Use kd, nkd or another model."
            )
    if pairs is not None:
        return named(student, teacher, pairs)
    return tuple((own.name, other.name) for own, other in _counterparts(student.levels, teacher.levels, num_levels))


def _counterparts(own: tuple[Level, ...], other: tuple[Level, ...], num_levels: int) -> tuple[LevelPair, ...]:
    if not (is_plain(own) or is_plain(other)):
        return by_stride(own, other)
    count = min(num_levels, len(own), len(other))
    return stages(
        evenly(own, count) if is_plain(own) else own[-count:],
        evenly(other, count) if is_plain(other) else other[-count:],
    )


def _size(level: Level) -> str:
    return f"{level.grid[0]}x{level.grid[1]}"
