"""Which student level learns from which teacher level: pure rules on the models' levels.

Each rule returns (student level, teacher level) pairs, shallow to deep, and never names a level twice.
"""

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from math import log2

from limbeck.errors import UserError
from limbeck.outputs import Level, ModelFacts

LevelPair = tuple[Level, Level]
Levels = tuple[Level, ...]
Rule = Callable[[Levels, Levels], tuple[LevelPair, ...]]
Names = Sequence[tuple[str, str]]


def is_plain(levels: Levels) -> bool:
    """Whether the levels are the equal-sized blocks of a plain transformer rather than a pyramid's stages."""
    return bool(levels) and all(level.kind == "block" for level in levels)


def is_neck(levels: Levels) -> bool:
    """Whether the levels are what a detector's heads or decoder read: maps of one depth at several strides."""
    return any(level.kind in ("fpn", "encoder") for level in levels)


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
    partners = {level.stride: level for level in _deepest_of_stride(teacher)}
    own = _deepest_of_stride(student)
    return tuple((level, partners[level.stride]) for level in own if level.stride in partners)


def at_strides(student: Levels, teacher: Levels) -> tuple[LevelPair, ...]:
    """`equal_stride`, or where no stride is shared the nearest ones, of one level a stride: for necks of detectors.

    Never by position: the third map of one detector may be of stride 16, of the next 32. The pairs go from fine to
    coarse, in whatever order the detectors list their maps. Of a detector that also offers the blocks before its neck
    only the neck is paired.
    """
    own, other = (
        tuple(sorted(_deepest_of_stride(_neck(levels)), key=lambda level: level.stride))
        for levels in (student, teacher)
    )
    return equal_stride(own, other) or by_stride(own, other)


def counterparts(
    student: Levels, teacher: Levels, num_levels: int, pyramids: Rule = by_stride
) -> tuple[LevelPair, ...]:
    """Levels of all depths.

    Where a model offers the neck of a detector: `at_strides`. Of a plain transformer, `num_levels` evenly spaced blocks
    that end with the last stand for its stages, and the other model's deepest levels are paired with them in order.

    Args:
        student: shallow to deep.
        teacher: shallow to deep.
        num_levels: blocks taken of a plain transformer.
        pyramids: the rule for two pyramids of classifiers.
    """
    if is_neck(student) or is_neck(teacher):
        return at_strides(student, teacher)
    if not (is_plain(student) or is_plain(teacher)):
        return pyramids(student, teacher)
    count = min(num_levels, len(student), len(teacher))
    return stages(
        evenly(student, count) if is_plain(student) else student[-count:],
        evenly(teacher, count) if is_plain(teacher) else teacher[-count:],
    )


def stride_notes(method: str, student: ModelFacts, teacher: ModelFacts, pairs: Names) -> tuple[str, ...]:
    """Sentences on what pairing by stride left out or could not meet; none where no neck of a detector is paired.

    Args:
        method: its name.
        student: facts of the student.
        teacher: facts of the teacher.
        pairs: (student level, teacher level) names.
    """
    if not (is_neck(student.levels) or is_neck(teacher.levels)):
        return ()
    strides = [{level.stride for level in _neck(facts.levels)} for facts in (student, teacher)]
    if strides[0].isdisjoint(strides[1]):
        own, other = (", ".join(map(str, sorted(of))) for of in strides)
        return (f"{method}: the student has strides {own}, the teacher {other}; the nearest are paired.",)
    notes = []
    for place, (role, facts, rival) in enumerate((("student", student, "teacher"), ("teacher", teacher, "student"))):
        paired = {facts.level(pair[place]).name for pair in pairs}
        neck = [level for level in _neck(facts.levels) if level.name not in paired]
        alone = [level for level in neck if level.stride not in strides[1 - place]]
        if alone:
            names = ", ".join(f"{level.name} (stride {level.stride})" for level in alone)
            notes.append(f"{method}: {role} {names} left out, since the {rival} has no map of that stride.")
    return tuple(notes)


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


def _neck(levels: Levels) -> Levels:
    """The levels of a detector's neck; all levels of a model without one."""
    return tuple(level for level in levels if is_neck((level,))) or levels


def _deepest_of_stride(levels: Levels) -> Levels:
    """One level of each stride, the last one, in the levels' order."""
    last = {level.stride: place for place, level in enumerate(levels)}
    return tuple(levels[place] for place in sorted(last.values()))


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
