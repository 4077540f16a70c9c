"""The course of a detection run, from names to results; as `limbeck.verbs.course`, for detectors."""

import time

from limbeck.models.detection.base import Detector
from limbeck.outputs import Level
from limbeck.recipe import DistillRecipe, TrainRecipe, as_plain
from limbeck.run import Run, process_rank
from limbeck.tasks.detection import predict_detections
from limbeck.training.evidence import Finding
from limbeck.training.fit import fit
from limbeck.training.watcher import Watcher, gather_facts
from limbeck.verbs import screen
from limbeck.verbs.detection import results
from limbeck.verbs.detection.classes import in_our_classes
from limbeck.verbs.detection.preparation import DetectionCourse, prepare, train_loader, val_loader
from limbeck.verbs.teacher_check import TOLERANCE, ImplausibleTeacherError

LEAST_AP50 = 0.02
"""A teacher whose AP50 on the validation scenes is below this is not believed to know them."""


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
    watcher = Watcher(gather_facts(course.distiller, recipe), given=doubts, say=screen.notes)
    module = fit(
        course.distiller, course.task(), recipe, run, train_loader(course), val_loader(course, rank_share=True), watcher
    )
    if not module.trainer.is_global_zero:
        return run
    results.write(course, module, seconds=time.perf_counter() - began)
    return run


def _check_teacher(course: DetectionCourse) -> list[Finding]:
    """Measure the teacher on the validation scenes, on the student's pictures; stop on an implausible one.

    Returns:
        What is doubtful about one that is trusted all the same.
    """
    recipe, teacher = course.recipe, course.teacher
    if teacher is None or not isinstance(recipe, DistillRecipe):
        return []
    found = predict_detections(teacher.to(course.device), val_loader(course), course.device)
    course.teacher_answers, notes = in_our_classes(found, teacher.facts.class_names, course.scenes.class_names)
    course.scenes.notes += [f"{teacher.facts.name}: {note}" for note in notes]
    screen.notes(notes)
    if course.pseudo_labelled:
        return []  # the labels are its own
    task = course.task()
    task.masks = task.masks and teacher.facts.has_masks
    course.teacher_scores = task.scores(course.teacher_answers)
    boxes = course.teacher_scores["bbox"]
    screen.table(
        f"The teacher {teacher.facts.name} on the validation scenes",
        ("AP", "AP50", "AP75", "mask AP", "images"),
        [
            (
                *(screen.per_cent(value) for value in (boxes.ap, boxes.ap50, boxes.ap75)),
                screen.per_cent(course.teacher_scores["segm"].ap) if "segm" in course.teacher_scores else None,
                boxes.images,
            )
        ],
    )
    complaint = None
    if not boxes.ap50 >= LEAST_AP50:
        complaint = f"finds next to nothing (AP50 {100 * boxes.ap50:.1f} %)"
    elif recipe.teacher_accuracy is not None and boxes.ap < recipe.teacher_accuracy - TOLERANCE:
        complaint = f"has an AP of {100 * boxes.ap:.1f} % instead of {100 * recipe.teacher_accuracy:.1f} %"
    if not complaint:
        return []
    words = (
        f"The teacher {teacher.facts.name} {complaint} on the {boxes.images} validation images, shown with a shorter "
        f"side of {course.resize.short} pixels (it was made for {teacher.resize.short})."
    )
    causes = (
        "Likely causes are a picture too small for it, other normalisation, classes of another meaning under the same names, "
        "or weights of another data set."
    )
    if recipe.trust_teacher:
        return [Finding("teacher_implausible", "warning", words, causes)]
    raise ImplausibleTeacherError(f"{words} {causes} If the teacher is meant to be this weak, add --trust_teacher.")


def _show_pairs(course: DetectionCourse) -> None:
    rows = []
    for name, loss in course.distiller.distillation_losses.items():
        for pair in loss.pairs:
            assert course.teacher is not None
            own, other = _level(course.student, pair.student), _level(course.teacher, pair.teacher)
            rows.append((name, own.name, own.channels, own.stride, other.name, other.channels, other.stride))
    if rows:
        columns = ("loss", "student level", "channels", "stride", "teacher level", "channels", "stride")
        screen.table("The student's levels and the teacher's they learn from", columns, rows)


def _level(detector: Detector, name: str) -> Level:
    final = detector.facts.final
    return final if final is not None and name == final.name else detector.facts.level(name)
