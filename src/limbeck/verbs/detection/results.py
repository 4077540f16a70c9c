"""What a detection run leaves behind: the student alone, its numbers, and what the report is made from."""

from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from limbeck.detection import Size, pad
from limbeck.models.detection.base import Detector
from limbeck.models.detection.door import save_detector
from limbeck.recipe import DistillRecipe
from limbeck.reporting.detection.artefacts import write_detections
from limbeck.tasks.detection import predict_detections
from limbeck.tasks.detection_scores import DetectionScores
from limbeck.training.module import TrainingModule
from limbeck.verbs import screen
from limbeck.verbs.detection.model_card import model_card
from limbeck.verbs.detection.preparation import DetectionCourse, val_loader
from limbeck.verbs.results import combined_licence, count_parameters, verb_of, write_report_page


def write(course: DetectionCourse, module: TrainingModule, *, seconds: float) -> None:
    """Write the student, model card, summary, detections, scores and report of a finished run."""
    run, recipe = course.run, course.recipe
    student = module.measured_student
    assert isinstance(student, Detector)
    assert module.records is not None
    student.to(course.device).eval()
    student.facts, student.provenance, student.rebuild, student.resize = (
        course.student.facts,
        course.student.provenance,
        course.student.rebuild,
        course.student.resize,
    )
    student.provenance.source = f"{verb_of(recipe)} run {run.path.name}"
    student.provenance.licence = combined_licence(course.student_origin, course.teacher, course.distiller)
    save_detector(student, run.path, stem="student" if isinstance(recipe, DistillRecipe) else "model")
    answers = predict_detections(student, val_loader(course), course.device)
    scores = {"student": course.task().scores(answers)}
    if course.teacher_scores:
        scores["teacher"] = course.teacher_scores
    write_detections(run.path, course.scenes.val, answers, course.teacher_answers, scores)
    summary = _summary(course, module, student, scores, seconds)
    run.write_summary(summary)
    run.write_text("MODEL_CARD.md", model_card(course, summary))
    module.records.write_csv()
    _show(course, summary)
    write_report_page(run, recipe)


@torch.no_grad()
def count_macs(detector: Detector, size: Size) -> int:
    """Multiply-adds of finding objects in one picture of (height, width), everything included; counted by torch.

    The picture is noise from a fixed seed: how many regions a two-stage detector looks at depends on what it sees.
    """
    device = next(detector.parameters()).device
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    pictures = pad([image], 1 if detector.resize.stretch else 32)
    was_training = detector.training
    detector.eval()
    with FlopCounterMode(display=False) as counter:
        detector.detect(pictures, [size])
    detector.train(was_training)
    return int(counter.get_total_flops()) // 2


def _summary(
    course: DetectionCourse,
    module: TrainingModule,
    student: Detector,
    scores: dict[str, dict[str, DetectionScores]],
    seconds: float,
) -> dict[str, Any]:
    assert module.records is not None
    plain = {role: {kind: of.summary() for kind, of in kinds.items()} for role, kinds in scores.items()}
    last = plain["student"]["bbox"]["ap"] or 0.0
    # The last epoch is measured here in any case; with eval_every, others may not have been.
    rows = [*module.records.of("val"), {"ap": last, "epoch": course.recipe.epochs - 1}]
    best = max(rows, key=lambda row: row["ap"])
    rates = [row["images_per_second"] for row in module.records.of("train")]
    teacher = course.teacher
    size = course.resize.size(*course.scenes.native_size)
    return {
        "task": "detection",
        "verb": verb_of(course.recipe),
        "name": course.student.facts.name,
        "teacher": teacher.facts.name if teacher is not None else None,
        "method": course.recipe.method if isinstance(course.recipe, DistillRecipe) else None,
        "scores": {"student": plain["student"], "teacher": plain.get("teacher")},
        "best": {"ap": best["ap"], "epoch": best["epoch"]},
        "class_names": list(course.scenes.class_names),
        "pseudo_labelled": course.pseudo_labelled,
        "parameters": {
            "student": count_parameters(student),
            "teacher": count_parameters(teacher) if teacher is not None else None,
        },
        "macs": {
            "student": count_macs(student, size),
            "teacher": count_macs(teacher, size) if teacher is not None else None,
        },
        "macs_size": list(size),
        "image_size": [course.resize.short, course.resize.long],
        "seconds": seconds,
        "training_seconds": module.seconds,
        "peak_memory": module.peak_memory,
        "images_per_second": float(np.median(rates)) if rates else None,
        "pairs": [
            {"loss": name, "student": pair.student, "teacher": pair.teacher}
            for name, loss in course.distiller.distillation_losses.items()
            for pair in loss.pairs
        ],
        "notes": course.notes,
        "findings": module.findings,
    }


def _show(course: DetectionCourse, summary: dict[str, Any]) -> None:
    rows = []
    for role in ("teacher", "student"):
        of = summary["scores"].get(role)
        if not of:
            continue
        boxes, masks = of["bbox"], of.get("segm")
        label = role if summary["teacher"] else "model"
        values = (screen.per_cent(boxes[key]) for key in ("ap", "ap50", "ap75"))
        sizes = f"{summary['parameters'][role] / 1e6:.2f} M", f"{summary['macs'][role] / 1e9:.2f} G"
        rows.append((label, *values, screen.per_cent(masks["ap"]) if masks else None, *sizes))
    screen.table(
        f"{summary['name']}, last epoch, after {summary['seconds']:.0f} s",
        ("role", "AP", "AP50", "AP75", "mask AP", "parameters", "multiply-adds"),
        rows,
    )
    screen.say(f"Run: {course.run.path}")
