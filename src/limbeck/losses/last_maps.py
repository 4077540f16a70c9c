"""The last maps of classifiers, where features are compared without regard to what came before them."""

from torch import Tensor

from limbeck.errors import UserError
from limbeck.outputs import Level, ModelFacts, Outputs, Request


def last_map(method: str, facts: ModelFacts) -> Level:
    """The map after a model's final norm; its last level where it has none.

    Raises:
        UserError: it has no map at all.
    """
    if facts.final is not None:
        return facts.final
    if not facts.levels:
        raise UserError(
            f"{method} compares feature maps, but {facts.name} offers none. Use another model, or feature_kd(dense=0), which "
            "compares pooled vectors alone."
        )
    return facts.levels[-1]


def last_maps(method: str, student: ModelFacts, teacher: ModelFacts) -> tuple[Level, Level]:
    """The maps after the final norm of both models; where one has none, the last levels of both.

    Raises:
        UserError: one of them has no map at all.
    """
    own, other = last_map(method, student), last_map(method, teacher)
    if (student.final is None) == (teacher.final is None):
        return own, other
    return (student.levels or (own,))[-1], (teacher.levels or (other,))[-1]


def map_of(outputs: Outputs, level: Level) -> Tensor:
    """The map (B, C, H, W) of a level that `last_map` chose."""
    if level.name != "final":
        return outputs.maps[level.name]
    assert outputs.final is not None
    return outputs.final


def request_of(level: Level | None, *, pooled: bool = False) -> Request:
    """What a model is asked for, to give the map of a level that `last_map` chose, and the pooled vector."""
    final = level is not None and level.name == "final"
    return Request((level.name,) if level is not None and not final else (), pooled=pooled, final=final)


def resized_notes(method: str, own: Level, other: Level) -> tuple[str, ...]:
    """A sentence where the student's map must be resized to the teacher's grid."""
    if own.grid == other.grid:
        return ()
    sizes = [f"{level.grid[0]}x{level.grid[1]}" for level in (own, other)]
    return (f"{method}: student {own.name} ({sizes[0]}) is resized to teacher {other.name} ({sizes[1]}).",)
