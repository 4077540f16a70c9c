"""What a run leaves behind: the student alone, its numbers, and what the report is made from."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.distiller import Distillation
from limbeck.files import atomic_write
from limbeck.models.base import Provenance, VisionModel
from limbeck.models.detection.base import Detector
from limbeck.models.door import save_model
from limbeck.recipe import DistillRecipe, TrainRecipe
from limbeck.reporting.similarity import linear_cka
from limbeck.run import Run
from limbeck.tasks.classification import agreement, measure, predict_logits
from limbeck.training.module import TrainingModule
from limbeck.verbs import screen
from limbeck.verbs.features import read_features
from limbeck.verbs.model_card import model_card
from limbeck.verbs.preparation import Course, val_loader

CKA_IMAGES = 512
SAMPLES_PER_KIND = 8


def write(course: Course, module: TrainingModule, *, seconds: float) -> None:
    """Write the student, model card, summary, predictions, similarities, samples and report of a finished run."""
    run, recipe = course.run, course.recipe
    student = module.measured_student
    assert isinstance(student, VisionModel)
    assert module.records is not None
    student.to(course.device).eval()
    student.facts, student.provenance, student.rebuild = (
        course.student.facts,
        course.student.provenance,
        course.student.rebuild,
    )
    student.provenance.source = f"{verb_of(recipe)} run {run.path.name}"
    student.provenance.licence = combined_licence(course.student_origin, course.teacher, course.distiller)
    save_model(
        student,
        run.path,
        stem="student" if isinstance(recipe, DistillRecipe) else "model",
        class_names=course.data.class_names,
    )
    logits = labels = None
    if course.data.val is not None:
        logits, labels = predict_logits(student, val_loader(course), course.device)
        _write_predictions(course, logits, labels)
        _write_samples(course, logits, labels)
        if course.teacher is not None:
            _write_cka(course, student)
    summary = _summary(course, module, student, logits, labels, seconds)
    run.write_summary(summary)
    run.write_text("MODEL_CARD.md", model_card(course, summary))
    module.records.write_csv()
    _show(course, summary)
    write_report_page(run, recipe)


def verb_of(recipe: TrainRecipe | DistillRecipe) -> str:
    """distill or train."""
    return "distill" if isinstance(recipe, DistillRecipe) else "train"


def write_report_page(run: Run, recipe: TrainRecipe | DistillRecipe) -> None:
    """The report of a run whose other files are written, where the recipe asks for one."""
    if recipe.report:
        from limbeck.reporting.page import write_report

        write_report(run.path, controls=recipe.control)
        screen.say(f"Report: {run.report_file}")


def combined_licence(origin: Provenance, teacher: VisionModel | Detector | None, distiller: Distillation[Any]) -> str:
    """The student's own licence, with that of the teacher it learned from where it is another."""
    own = origin.licence
    if teacher is None or not distiller.losses or teacher.provenance.licence == own:
        return own
    return f"{own}; distilled from a teacher under: {teacher.provenance.licence}"


def count_macs(model: VisionModel) -> int:
    """Multiply-adds of one image's forward pass at the model's input size, counted by torch."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *model.facts.input_size, device=device))
    model.train(was_training)
    return int(counter.get_total_flops()) // 2


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def _summary(
    course: Course,
    module: TrainingModule,
    student: VisionModel,
    logits: NDArray[np.float32] | None,
    labels: NDArray[np.int64] | None,
    seconds: float,
) -> dict[str, Any]:
    assert module.records is not None
    accuracy: dict[str, Any] = {"last": None, "best": None, "best_epoch": None}
    if logits is not None and labels is not None and course.data.val is not None and course.data.val.labels is not None:
        last = measure(logits, labels).accuracy
        # The last epoch is measured here in any case; with eval_every, others may not have been.
        rows = [*module.records.of("val"), {"accuracy": last, "epoch": course.recipe.epochs - 1}]
        best = max(rows, key=lambda row: row["accuracy"])
        accuracy = {"last": last, "best": best["accuracy"], "best_epoch": best["epoch"]}
    rates = [row["images_per_second"] for row in module.records.of("train")]
    return {
        "verb": verb_of(course.recipe),
        "name": course.student.facts.name,
        "teacher": course.teacher.facts.name if course.teacher is not None else None,
        "method": course.recipe.method if isinstance(course.recipe, DistillRecipe) else None,
        "accuracy": accuracy,
        "teacher_accuracy": course.teacher_measured.accuracy if course.teacher_measured is not None else None,
        "agreement": agreement(logits, course.teacher_logits)
        if logits is not None and course.teacher_logits is not None and logits.shape == course.teacher_logits.shape
        else None,
        "class_names": list(course.data.class_names) if course.data.class_names is not None else None,
        "parameters": {"student": count_parameters(student), "teacher": _of(course.teacher, count_parameters)},
        "macs": {"student": count_macs(student), "teacher": _of(course.teacher, count_macs)},
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


def _write_predictions(course: Course, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    arrays: dict[str, NDArray[Any]] = {"labels": labels, "student_logits": logits}
    if course.teacher_logits is not None:
        arrays["teacher_logits"] = course.teacher_logits
    _save_arrays(course, "predictions.npz", arrays)


def _write_samples(course: Course, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Images worth a look: where the student is wrong and the teacher right, where both are wrong, where both are right."""
    right = logits.argmax(1) == labels
    taught = course.teacher_logits.argmax(1) == labels if course.teacher_logits is not None else right
    kinds = (~right & taught, ~right & ~taught, right & ~taught, right & taught)
    # Evenly spaced, since validation images are often sorted by class.
    found = [np.flatnonzero(kind) for kind in kinds]
    places = [np.linspace(0, len(some) - 1, min(len(some), SAMPLES_PER_KIND)).round().astype(int) for some in found]
    wanted = sorted(int(i) for some, chosen in zip(found, places, strict=True) for i in some[chosen])
    images: list[NDArray[np.uint8]] = []
    position = 0
    for batch in val_loader(course):
        count = len(batch["label"])
        for i in wanted:
            if position <= i < position + count:
                pixels = batch["image"][i - position].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
                images.append(pixels)
        position += count
        if len(images) == len(wanted):
            break
    if images:
        _save_arrays(course, "samples.npz", {"images": np.stack(images), "index": np.array(wanted)})


def _write_cka(course: Course, student: VisionModel) -> None:
    """Linear CKA between the two models' levels, each averaged over its grid, on some validation images."""
    assert course.teacher is not None
    models = (student, course.teacher)
    names = [tuple(level.name for level in model.facts.levels) for model in models]
    if not all(names):
        return
    first, second = (
        read_features(model, own, val_loader(course, most=CKA_IMAGES), course.device)[1]
        for model, own in zip(models, names, strict=True)
    )
    cka = np.array([[linear_cka(x, y) for y in second] for x in first], np.float32)
    _save_arrays(
        course, "cka.npz", {"cka": cka, "student_levels": np.array(names[0]), "teacher_levels": np.array(names[1])}
    )


def _save_arrays(course: Course, name: str, arrays: dict[str, NDArray[Any]]) -> None:
    with atomic_write(course.run.path / name) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _show(course: Course, summary: dict[str, Any]) -> None:
    rows: list[tuple[Any, ...]] = []
    if course.teacher is not None:
        rows.append(
            (
                "teacher",
                course.teacher.facts.name,
                screen.per_cent(summary["teacher_accuracy"]),
                None,
                *_sizes(summary, "teacher"),
            )
        )
    label = "student" if course.teacher is not None else "model"
    rows.append(
        (
            label,
            course.student.facts.name,
            screen.per_cent(summary["accuracy"]["last"]),
            screen.per_cent(summary["agreement"]),
            *_sizes(summary, "student"),
        )
    )
    screen.table(
        f"Result, last epoch, after {summary['seconds']:.0f} s",
        ("role", "model", "accuracy", "agreement", "parameters", "multiply-adds"),
        rows,
    )
    screen.say(f"Run: {course.run.path}")


def _sizes(summary: dict[str, Any], role: str) -> tuple[str, str]:
    return f"{summary['parameters'][role] / 1e6:.2f} M", f"{summary['macs'][role] / 1e6:.1f} M"


def _of(model: VisionModel | None, count: Any) -> int | None:
    return None if model is None else int(count(model))
