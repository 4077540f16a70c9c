"""What a run is watched with: what the check of the teacher found, and a look at both models' features now and then."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from limbeck.models.base import VisionModel
from limbeck.reporting.similarity import linear_cka
from limbeck.tasks.classification import agreement, measure
from limbeck.training.evidence import Finding
from limbeck.training.watcher import Probe, Watcher, gather_facts
from limbeck.verbs import screen
from limbeck.verbs.features import read_features
from limbeck.verbs.preparation import Course, plain_train_loader, val_loader
from limbeck.verbs.teacher_check import CLASSES, COLOURS, TOLERANCE, Trials, is_implausible, try_out

WATCHED_IMAGES = 256
"""Enough that linear CKA errs by about 0.02, few enough to cost less than an epoch on the smallest data."""

MOST_RENAMED = 5

PLAUSIBLE = 1 - 2 * TOLERANCE
"""A teacher this accurate cannot be much better under other assumptions, so none are tried."""


def make_watcher(course: Course, given: Sequence[Finding]) -> Watcher:
    """What watches a classification run; `given` is what was found before it."""
    chance = None
    if course.teacher_logits is not None and course.teacher_logits.shape[1] == course.student.facts.num_classes:
        chance = chance_agreement(course.teacher_logits)
    return Watcher(
        gather_facts(course.distiller, course.recipe, chance=chance),
        given=given,
        probe=_probe(course),
        say=screen.notes,
    )


def doubts_about(course: Course, labels: NDArray[np.int64], expected: float | None) -> list[Finding]:
    """What seems wrong with the teacher, measured on the validation images, whether or not the user trusts it.

    Args:
        course: with the teacher's answers.
        labels: (N,) of the validation images.
        expected: the accuracy that the user named, or None.
    """
    teacher, logits = course.teacher, course.teacher_logits
    assert teacher is not None
    assert logits is not None
    measured = measure(logits, labels)
    complaint = is_implausible(measured, labels, expected)
    if complaint is None and measured.accuracy > PLAUSIBLE:
        return []
    trials = try_out(teacher, val_loader(course, most=None if complaint else WATCHED_IMAGES), course.device)
    names = course.data.class_names or tuple(str(number) for number in range(logits.shape[1]))
    found = _explanation(teacher.facts.name, trials, names)
    if found is None and complaint is not None:
        words = (
            f"The teacher {teacher.facts.name} is {complaint}, and neither another normalisation nor another order of classes "
            "helps."
        )
        found = Finding(
            "teacher_implausible", "warning", words, "See that its weights and its input size fit these images."
        )
    return [found] if found is not None else []


def chance_agreement(logits: NDArray[np.float32]) -> float:
    """The share of images whose answer, of (N, K) logits, is the commonest one."""
    return float(np.bincount(logits.argmax(1)).max() / len(logits))


def _explanation(teacher: str, trials: Trials, class_names: Sequence[str]) -> Finding | None:
    if trials.likely is None:
        return None
    before, after = trials.baseline, trials.accuracies[trials.likely]
    told = f"{100 * before:.1f} % right on validation images as it is, and {100 * after:.1f} %"
    if trials.likely == CLASSES:
        moved = [k for k in range(len(class_names)) if trials.renaming[k] != k]
        pairs = [f"{class_names[k]!r} is {class_names[trials.renaming[k]]!r}" for k in moved[:MOST_RENAMED]]
        more = f" and {len(moved) - MOST_RENAMED} more" if len(moved) > MOST_RENAMED else ""
        words = f"The classes of the teacher {teacher} are in another order: it is {told} when its {', '.join(pairs)}{more}."
        return Finding(
            "classes_shuffled", "warning", words, "Give the data's classes the order in which the teacher learned them."
        )
    words = f"The teacher {teacher} is {told} {trials.likely}."
    if trials.likely == COLOURS:
        return Finding("teacher_colours", "warning", words, "Exchange the first and last channel of its first weights.")
    return Finding(
        "teacher_normalisation", "warning", words, "Set the mean and std with which it was trained (see docs/guide.md)."
    )


def _probe(course: Course) -> Probe | None:
    """How teacher and student answer some images, and how alike the features are that losses compare, else the last ones."""
    teacher, student = course.teacher, course.student
    if teacher is None:
        return None
    batches: Callable[[], Iterable[dict[str, Tensor]]]
    if course.data.val is not None:
        batches = lambda: val_loader(course, most=WATCHED_IMAGES)  # noqa: E731
    elif len(course.data.train):
        batches = lambda: plain_train_loader(course, most=WATCHED_IMAGES)  # noqa: E731
    else:
        return None
    pairs = compared_levels(course)
    of_teacher: list[tuple[NDArray[np.float32], list[NDArray[np.float32]]]] = []

    def measure_both() -> dict[str, float]:
        if not of_teacher:  # it does not change
            of_teacher.append(read_features(teacher, [pair[1] for pair in pairs], batches(), course.device))
        theirs, other = of_teacher[0]
        ours, own = read_features(student, [pair[0] for pair in pairs], batches(), course.device)
        values = {f"cka/{a}|{b}": linear_cka(x, y) for (a, b), x, y in zip(pairs, own, other, strict=True)}
        if ours.shape == theirs.shape:
            values |= {"agreement": agreement(ours, theirs), "chance": chance_agreement(theirs)}
        return values

    return measure_both


def compared_levels(course: Course) -> list[tuple[str, str]]:
    """(student level, teacher level) names that the losses compare and both models offer; without any, the last of each."""
    teacher, student = course.teacher, course.student
    assert teacher is not None
    named = dict.fromkeys(
        (pair.student, pair.teacher)
        for loss in course.distiller.distillation_losses.values()
        for pair in loss.pairs
        if _offers(student, pair.student) and _offers(teacher, pair.teacher)
    )
    if not named and student.facts.levels and teacher.facts.levels:
        named = {(student.facts.levels[-1].name, teacher.facts.levels[-1].name): None}
    return list(named)


def _offers(model: VisionModel, name: str) -> bool:
    facts = model.facts
    plain = any(name in (level.name, level.preactivation) for level in facts.levels)
    return plain or (name == "pooled" and facts.pooled_channels > 0) or (name == "final" and facts.final is not None)
