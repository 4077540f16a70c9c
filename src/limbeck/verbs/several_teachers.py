"""Several teachers measured before training: each by itself, and all together as the losses read them."""

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.models.several import SeveralModels, log_mean_probability
from limbeck.recipe import DistillRecipe
from limbeck.tasks.classification import Measurement, measure, predict_logits
from limbeck.verbs import screen
from limbeck.verbs.preparation import Course, val_loader
from limbeck.verbs.teacher_check import TOLERANCE, ImplausibleTeacherError, require_plausible

TOGETHER = "all together"


def check_several(course: Course, teachers: SeveralModels) -> None:
    """Measure those teachers whose classes are the data's, and stop on an implausible one.

    The accuracy that the user expects is that of all together: a weak one among good ones may be meant so.

    Args:
        course: learns the teachers' joint answers and their measurement, where all of them know the data's classes.
        teachers: on their device.

    Raises:
        UserError: one of them is near chance, or all together are far below what was expected.
    """
    recipe, val = course.recipe, course.data.val
    assert isinstance(recipe, DistillRecipe)
    assert val is not None
    answers: list[NDArray[np.float32]] = []
    rows: list[tuple[str, Measurement]] = []
    for teacher in teachers.members:
        if course.data.class_names is not None and teacher.facts.num_classes != len(course.data.class_names):
            screen.notes(
                [
                    f"The teacher {teacher.facts.name} knows {teacher.facts.num_classes} classes, the data has "
                    f"{len(course.data.class_names)}: it cannot be measured here."
                ]
            )
            continue
        logits, labels = predict_logits(teacher, val_loader(course), course.device)
        answers.append(logits)
        if val.labels is None:
            continue
        if recipe.trust_teacher:
            measured = measure(logits, labels)
        else:
            measured = require_plausible(teacher, logits, labels, val_loader(course), None, course.device)
        rows.append((teacher.facts.name, measured))
    if len(answers) == len(teachers.members) and teachers.facts.num_classes:
        course.teacher_logits = together(answers)
        if val.labels is not None:
            course.teacher_measured = measure(course.teacher_logits, labels)
            if not recipe.trust_teacher:
                require_expected(course.teacher_measured, rows, recipe.teacher_accuracy)
            rows.append((TOGETHER, course.teacher_measured))
    if rows:
        screen.table(
            "Teachers on the validation images",
            ("model", "accuracy", "log-likelihood", "calibration error", "images"),
            [
                (name, screen.per_cent(of.accuracy), f"{-of.nll:.3f}", f"{of.calibration_error:.3f}", of.images)
                for name, of in rows
            ],
        )


def require_expected(joint: Measurement, each: list[tuple[str, Measurement]], expected: float | None) -> None:
    """Refuse teachers who together are far below what the user expects.

    Args:
        joint: the measurement of their mean probabilities.
        each: name and measurement of each of them.
        expected: the accuracy the user named, or None.

    Raises:
        ImplausibleTeacherError: with the accuracy of each.
    """
    if expected is None or joint.accuracy >= expected - TOLERANCE:
        return
    alone = "; ".join(f"{name} {100 * of.accuracy:.1f} %" for name, of in each)
    raise ImplausibleTeacherError(
        f"The teachers together are far below what was expected ({100 * joint.accuracy:.1f} % instead of {100 * expected:.1f} %) "
        f"on the {joint.images} validation images. Each alone: {alone}. Leave a weak one out, or add --trust_teacher."
    )


def together(answers: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(N, K) log of the mean of the teachers' class probabilities, from the (N, K) logits of each."""
    joint: NDArray[np.float32] = log_mean_probability([torch.from_numpy(of) for of in answers]).numpy()
    return joint
