"""What a run's names may be, by its task; checked before anything heavy is imported."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from limbeck.errors import UserError
from limbeck.losses.catalogue import METHODS
from limbeck.losses.names import MethodSpec
from limbeck.recipe import NO_DATA, NO_TEACHER, DistillRecipe, Task
from limbeck.run import Run
from limbeck.synthesis.names import check_moments, parse_synthesis

Check = Callable[[str], Any]


def names_of(task: Task) -> tuple[Check, Check]:
    """What checks a model's name and a data set's; each raises a UserError or FileNotFoundError."""
    if task == "detection":
        from limbeck.data.detection.names import check_scenes_name
        from limbeck.models.detection.names import parse_detector_name

        return parse_detector_name, check_scenes_name
    from limbeck.data.names import check_data_name
    from limbeck.models.names import parse_model_name

    return parse_model_name, check_data_name


def check_names(recipe: DistillRecipe, specs: Sequence[MethodSpec]) -> None:
    """All names of a distillation, before anything heavy is imported or made.

    Args:
        recipe: of one run, or what several runs have in common.
        specs: of the methods, but for "auto".

    Raises:
        FileNotFoundError: a named file or folder does not exist.
        UserError: a name has no meaning, or does not go together with another.
    """
    refuse_methods_of_another_task(specs, recipe.task)
    check_model, check_data = names_of(recipe.task)
    if recipe.teacher == NO_TEACHER:
        refuse_methods_that_need_a_teacher(specs)
    else:
        check_teacher(recipe.teacher, recipe.task)
    check_model(recipe.student)
    if recipe.data == NO_DATA:
        refuse_several_without_data(recipe.teacher)
        if recipe.synthesis != "auto":
            check_moments(parse_synthesis(recipe.synthesis, recipe.task))
    else:
        check_data(recipe.data)
    if recipe.val_data is not None:
        check_data(recipe.val_data)


def check_teacher(text: str, task: Task) -> None:
    """Check a teacher's name; of a classifier also several, joined by ` + `.

    Raises:
        FileNotFoundError: a named file or folder does not exist.
        UserError: a name has no meaning.
    """
    check_model, _ = names_of(task)
    if task == "detection":
        check_model(text)
        return
    from limbeck.models.names import split_model_names

    for name in split_model_names(text):
        check_model(name)


def refuse_several_without_data(teacher: str) -> None:
    """For a run whose images are made for its teacher.

    Raises:
        UserError: there are several teachers.
    """
    from limbeck.models.names import split_model_names

    names = split_model_names(teacher)
    if len(names) > 1:
        raise UserError(
            f"--data none makes images for one teacher, and {teacher!r} names {len(names)}. Make images for one of them (limbeck "
            "synthesize) and give their folder with --data."
        )


def task_of(asked: str, model: str, data: str | None) -> Task:
    """The task that "auto" stands for: that of the model's run, else that of the data's kind, else classification."""
    if asked != "auto":
        return "detection" if asked == "detection" else "classification"
    if os.path.isdir(model) and (recipe := Run(model).recipe):
        return "detection" if recipe.get("task") == "detection" else "classification"
    kind = (data or "").partition("(")[0].partition(":")[0]
    return "detection" if kind in ("shapes", "coco", "voc", "yolo") else "classification"


def refuse_methods_of_another_task(specs: Sequence[MethodSpec], task: Task) -> None:
    """Methods of a user's own are taken for any task.

    Raises:
        UserError: a method is not for this task.
    """
    for spec in specs:
        if spec.name in METHODS and task not in METHODS[spec.name].tasks:
            fitting = ", ".join(name for name, info in METHODS.items() if task in info.tasks)
            raise UserError(f"The method {spec.name} is not for --task {task}. For it: {fitting}.")


def refuse_methods_that_need_a_teacher(specs: Sequence[MethodSpec]) -> None:
    """For a run without one; methods of a user's own are asked when they are built.

    Raises:
        UserError: a method needs a teacher.
    """
    for spec in specs:
        if spec.name in METHODS and METHODS[spec.name].needs_teacher:
            without = ", ".join(name for name, info in METHODS.items() if not info.needs_teacher)
            raise UserError(
                f"The method {spec.name} needs a teacher, and --teacher is none. Name a teacher, or take a method that does "
                f"without: {without} (none is the control)."
            )
