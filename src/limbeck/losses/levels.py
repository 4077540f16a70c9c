"""What the methods that compare maps level by level share: the pairs, the projectors, and the sum over pairs.

`fitnets`, `pkd`, `cwd`, `mgd` and `fgd` differ in how two maps of one size are compared, and in which pairs they take.
"""

from abc import abstractmethod
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.detection import DetectorFacts, Size
from limbeck.errors import UserError
from limbeck.losses.base import DistillationLoss, Pairing
from limbeck.losses.grids import grid_of, resize
from limbeck.losses.pairing import Names, counterparts, named, stride_notes
from limbeck.outputs import Features, Level, ModelFacts, Request


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


class PairedLevels(DistillationLoss):
    """Pairs of levels, and the maps of each pair on the grid of the teacher's.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        method: its name, for messages.
        chosen: (student level, teacher level) names, shallow to deep, of levels that exist.
    """

    def __init__(self, student: ModelFacts, teacher: ModelFacts, method: str, chosen: Names) -> None:
        super().__init__(student, teacher)
        student, teacher = on_one_picture(student, teacher)
        self.pairs = tuple(Pairing(*pair) for pair in chosen)
        self.student_request = Request(tuple(dict.fromkeys(pair.student for pair in self.pairs)))
        self.teacher_request = Request(tuple(dict.fromkeys(pair.teacher for pair in self.pairs)))
        self.levels = tuple((student.level(pair.student), teacher.level(pair.teacher)) for pair in self.pairs)
        self.notes = stride_notes(method, student, teacher, chosen) + tuple(
            f"{method}: student {pair.student} ({_size(own)}) is resized to teacher {pair.teacher} ({_size(other)})."
            for pair, (own, other) in zip(self.pairs, self.levels, strict=True)
            if own.grid != other.grid
        )

    def paired_maps(self, student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
        """For each pair (B, Cs, H, W) of the student and (B, Ct, H, W) of the teacher, whose grid it is."""
        others = [teacher.maps[pair.teacher] for pair in self.pairs]
        return [
            (resize(student.maps[pair.student], grid_of(other)), other)
            for pair, other in zip(self.pairs, others, strict=True)
        ]


class LevelLoss(PairedLevels):
    """Sum over pairs of levels of `compare`."""

    @abstractmethod
    def compare(
        self, index: int, student_map: Float[Tensor, "B Cs H W"], teacher_map: Float[Tensor, "B Ct H W"]
    ) -> Float[Tensor, ""]:
        """The term of pair number `index`; a scalar in at least float32."""

    def forward(self, student: Features, teacher: Features, target: object = None) -> Tensor:
        """Sum of `compare` over the pairs; the target is not read."""
        maps = self.paired_maps(student, teacher)
        return torch.stack([self.compare(index, own, other) for index, (own, other) in enumerate(maps)]).sum()


def choose(
    student: ModelFacts, teacher: ModelFacts, method: str, pairs: Names | None, num_levels: int = 4
) -> tuple[tuple[str, str], ...]:
    """The user's own pairs, checked; without them, levels of all depths as `counterparts` pairs them.

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
    require_levels(method, student, teacher)
    if pairs is not None:
        return named(student, teacher, pairs)
    return tuple((own.name, other.name) for own, other in counterparts(student.levels, teacher.levels, num_levels))


def require_levels(method: str, *models: ModelFacts) -> None:
    """Refuse a loss on maps for models that offer none.

    Raises:
        UserError: one of them has no level.
    """
    for facts in models:
        if not facts.levels:
            raise UserError(
                f"{method} compares feature maps, but {facts.name} offers none. Use another model, or a method that "
                "compares predictions (see `limbeck methods`)."
            )


def on_one_picture(student: ModelFacts, teacher: ModelFacts) -> tuple[ModelFacts, ModelFacts]:
    """The same facts; of two detectors with the grids that their levels have on one picture, of the teacher's size.

    Classifiers resize what they are shown to a size of their own, detectors do not: their maps lie on grids that
    follow from the strides alone, whatever sizes their facts were measured at.
    """
    if not (isinstance(student, DetectorFacts) and isinstance(teacher, DetectorFacts)):
        return student, teacher
    return _at_size(student, teacher.input_size), _at_size(teacher, teacher.input_size)


def _at_size(facts: ModelFacts, size: Size) -> ModelFacts:
    def moved(level: Level) -> Level:
        return replace(level, grid=(-(-size[0] // level.stride), -(-size[1] // level.stride)))

    final = None if facts.final is None else moved(facts.final)
    return replace(facts, levels=tuple(map(moved, facts.levels)), final=final)


def _size(level: Level) -> str:
    return f"{level.grid[0]}x{level.grid[1]}"
