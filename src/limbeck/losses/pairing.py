"""Which student level learns from which teacher level: pure rules on the models' levels.

Each rule returns (student level, teacher level) pairs, shallow to deep, and never names a level twice.
"""

import difflib
from collections.abc import Sequence
from functools import cache
from math import log2

from limbeck.errors import UserError
from limbeck.outputs import Level, ModelFacts

LevelPair = tuple[Level, Level]
Levels = tuple[Level, ...]


def is_plain(levels: Levels) -> bool:
    """Whether the levels are the equal-sized blocks of a plain transformer rather than a pyramid's stages."""
    return bool(levels) and all(level.kind == "block" for level in levels)


def stages(student: Levels, teacher: Levels) -> tuple[LevelPair, ...]:
    """In order, first to last: for two models with equally many stages, whatever their strides.

    Raises:
        UserError: the counts differ.
    """
    if len(student) != len(teacher):
        raise UserError(
            f"Stages are paired in order, but the student has {len(student)} levels and the teacher {len(teacher)}. "
            "Name the pairs: pairs=[('student level', 'teacher level'), ...]."
        )
    return tuple(zip(student, teacher, strict=True))


def by_stride(student: Levels, teacher: Levels) -> tuple[LevelPair, ...]:
    """Every level of the model with fewer levels, with the nearest stride of the other, in order.

    The sum of |log2(student stride / teacher stride)| is minimal among all pairings that keep the order;
    of equally good ones the deepest is taken, since the last map of a resolution has seen most layers.
    """
    fewer, more = (student, teacher) if len(student) <= len(teacher) else (teacher, student)

    @cache
    def best(i: int, j: int) -> tuple[float, tuple[int, ...]]:
        """The cheapest places for fewer[i:] among more[j:]."""
        if i == len(fewer):
            return 0.0, ()
        options = []
        for place in range(j, len(more) - (len(fewer) - i) + 1):
            cost, rest = best(i + 1, place + 1)
            options.append((round(cost + abs(log2(fewer[i].stride / more[place].stride)), 9), (place, *rest)))
        return min(options, key=lambda option: (option[0], [-place for place in option[1]]))

    chosen = tuple(more[place] for place in best(0, 0)[1])
    return tuple(zip(fewer, chosen, strict=True)) if fewer is student else tuple(zip(chosen, fewer, strict=True))


def equal_stride(student: Levels, teacher: Levels) -> tuple[LevelPair, ...]:
    """The deepest level of each stride that both models have; empty where they share none."""
    deepest_student = {level.stride: level for level in student}
    deepest_teacher = {level.stride: level for level in teacher}
    order = {level.name: place for place, level in enumerate(student)}
    shared = [(level, deepest_teacher[s]) for s, level in deepest_student.items() if s in deepest_teacher]
    return tuple(sorted(shared, key=lambda pair: order[pair[0].name]))


def evenly(levels: Levels, count: int) -> Levels:
    """`count` evenly spaced levels that end with the last one; all of them if there are no more.

    Of 12 levels, 4 are numbers 2, 5, 8 and 11 (from 0).
    """
    count = min(count, len(levels))
    return tuple(levels[(i + 1) * len(levels) // count - 1] for i in range(count))


def first_and_last(student: Levels, teacher: Levels, first: int, last: int) -> tuple[LevelPair, ...]:
    """The first `first` and the last `last` levels of each; all by relative depth where a model is too shallow.

    Args:
        student: shallow to deep.
        teacher: shallow to deep.
        first: levels from the front.
        last: levels from the back.
    """
    wanted = first + last
    if min(len(student), len(teacher)) >= wanted:
        front = tuple(zip(student[:first], teacher[:first], strict=True))
        return front + tuple(zip(student[len(student) - last :], teacher[len(teacher) - last :], strict=True))
    count = min(len(student), len(teacher))
    return tuple(zip(_spread(student, count), _spread(teacher, count), strict=True))


def named(student: ModelFacts, teacher: ModelFacts, pairs: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """The user's own pairs, checked.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        pairs: (student level, teacher level) names; plain or pre-activation ones.

    Raises:
        UserError: there is no pair, a pair is not two names, or a model has no such level.
    """
    if not pairs:
        raise UserError("pairs is an empty list. Name at least one ('student level', 'teacher level') pair.")
    checked = []
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise UserError(f"pairs holds {pair!r}; each entry is ('student level', 'teacher level').")
        for facts, name in ((student, pair[0]), (teacher, pair[1])):
            _check_level(facts, name)
        checked.append((pair[0], pair[1]))
    return tuple(checked)


def _check_level(facts: ModelFacts, name: str) -> None:
    known = [n for level in facts.levels for n in (level.name, level.preactivation) if n is not None]
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{facts.name} has no level {name!r}.{hint} It has: {', '.join(known) or 'none'}.")


def _spread(levels: Levels, count: int) -> Levels:
    """`count` levels at equal relative depth, the first and the last among them (the last if only one)."""
    if count == 1:
        return levels[-1:]
    # Rounded to the nearest in whole numbers; steps of at least one never meet.
    return tuple(levels[(2 * i * (len(levels) - 1) + count - 1) // (2 * (count - 1))] for i in range(count))
