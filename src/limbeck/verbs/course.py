"""The course of a training run, from names to results; `train` has no method and no teacher, `distill` may have both."""

import time

from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.models.several import SeveralModels
from limbeck.recipe import DistillRecipe, TrainRecipe, as_plain
from limbeck.run import Run, process_rank
from limbeck.tasks.classification import measure, predict_logits
from limbeck.training.evidence import Finding
from limbeck.training.fit import fit
from limbeck.verbs import results, screen
from limbeck.verbs.preparation import (
    Course,
    plain_train_loader,
    prepare,
    record_data,
    train_loader,
    training_task,
    val_loader,
)
from limbeck.verbs.several_teachers import check_several
from limbeck.verbs.teacher_check import require_plausible
from limbeck.verbs.watching import doubts_about, make_watcher


def carry_out(recipe: TrainRecipe | DistillRecipe, run: Run) -> Run:
    """Train as the recipe says and write the results; see the verbs for what is raised."""
    began = time.perf_counter()
    screen.console.quiet = screen.console.quiet or process_rank() > 0
    course = prepare(recipe, run)
    recipe = course.recipe
    screen.settings(f"Recipe, saved in {run.path / 'recipe.yaml'}", as_plain(recipe))
    screen.notes(course.notes)
    doubts = _check_teacher(course)
    _show_pairs(course)
    if course.images is not None:
        course.images.make_before(course.data, resume=recipe.resume)
        record_data(run, course.data.record)
    _let_losses_look(course)
    loader = train_loader(course)
    task = training_task(course, loader)
    task.teacher_logits = course.teacher_logits
    watcher = make_watcher(course, doubts)
    module = fit(course.distiller, task, recipe, run, loader, val_loader(course, rank_share=True), watcher)
    if not module.trainer.is_global_zero:
        return run
    if course.images is not None:
        course.images.keep_samples(loader)
    results.write(course, module, seconds=time.perf_counter() - began)
    return run


def _let_losses_look(course: Course) -> None:
    """What losses must know of the training images before the first step."""
    course.distiller.to(course.device)
    course.distiller.expect_images(len(course.data.train))
    wanted = course.distiller.calibration_images
    if not wanted or course.recipe.resume:  # what was found is in the checkpoint
        return
    if not len(course.data.train):
        asking = [name for name, loss in course.distiller.distillation_losses.items() if loss.calibration_images]
        raise UserError(
            f"{', '.join(asking)} measures the teacher's features on images before training, and here they are made during it. "
            "Make them before it (limbeck synthesize), or switch the measuring off; `limbeck methods NAME` says how."
        )
    course.distiller.calibrate(
        lambda: (batch["image"].to(course.device) for batch in plain_train_loader(course, most=wanted))
    )


def _check_teacher(course: Course) -> list[Finding]:
    """Measure the teacher where its classes are the data's, and stop on an implausible one; what is doubtful about another."""
    recipe, teacher, val = course.recipe, course.teacher, course.data.val
    if teacher is None or val is None or not isinstance(recipe, DistillRecipe):
        return []
    teacher.to(course.device)
    if isinstance(teacher, SeveralModels):
        check_several(course, teacher)
        return []
    if course.data.class_names is not None and teacher.facts.num_classes != len(course.data.class_names):
        screen.notes(
            [
                f"The teacher knows {teacher.facts.num_classes} classes, the data has {len(course.data.class_names)}: "
                "it cannot be measured here."
            ]
        )
        return []
    course.teacher_logits, labels = predict_logits(teacher, val_loader(course), course.device)
    if val.labels is None:
        return []
    if recipe.trust_teacher:
        course.teacher_measured = measure(course.teacher_logits, labels)
    else:
        course.teacher_measured = require_plausible(
            teacher, course.teacher_logits, labels, val_loader(course), recipe.teacher_accuracy, course.device
        )
    measured = course.teacher_measured
    screen.table(
        "Teacher on the validation images",
        ("model", "accuracy", "log-likelihood", "calibration error", "images"),
        [
            (
                teacher.facts.name,
                screen.per_cent(measured.accuracy),
                f"{-measured.nll:.3f}",
                f"{measured.calibration_error:.3f}",
                measured.images,
            )
        ],
    )
    return doubts_about(course, labels, recipe.teacher_accuracy) if process_rank(recipe.devices) == 0 else []


def _show_pairs(course: Course) -> None:
    rows = [
        (name, *_describe_level(course.student, pair.student), *_describe_level(course.teacher, pair.teacher))
        for name, loss in course.distiller.distillation_losses.items()
        for pair in loss.pairs
    ]
    if rows:
        columns = ("loss", "student level", "channels, grid", "teacher level", "channels, grid")
        screen.table("The student's levels and the teacher's they learn from", columns, rows)


def _describe_level(model: VisionModel | None, name: str) -> tuple[str, str]:
    if model is None:  # a loss of the user's own may pair the student's levels with each other
        return name, ""
    if name == "pooled":
        return name, f"{model.facts.pooled_channels}, 1x1"
    level = model.facts.final if name == "final" else model.facts.level(name)
    return (name, f"{level.channels}, {level.grid[0]}x{level.grid[1]}") if level is not None else (name, "")
