"""The model card of a detector; as `limbeck.verbs.model_card`."""

from typing import Any

import limbeck
from limbeck.verbs.detection.preparation import DetectionCourse
from limbeck.verbs.model_card import learned_from, origin_lines, some


def model_card(course: DetectionCourse, summary: dict[str, Any]) -> str:
    """MODEL_CARD.md of a finished detection run."""
    recipe, student, teacher = course.recipe, course.student, course.teacher
    scores = summary["scores"]["student"]
    truth = (
        "the teacher's own pseudo-labels, not people's annotations"
        if course.pseudo_labelled
        else "the validation scenes"
    )
    lines = [
        f"# {student.facts.name}" + (f", distilled from {teacher.facts.name}" if teacher is not None else ""),
        "",
        f"Made with limbeck {limbeck.__version__} " + learned_from(recipe),
        "",
        "## What it is",
        "",
        f"* {'Boxes and masks' if student.facts.has_masks else 'Boxes'} of {len(summary['class_names'])} classes: "
        f"{some(summary['class_names'])}.",
        "* Input: RGB images with values in [0, 1], "
        + (
            f"stretched to {course.resize.short} x {course.resize.long} pixels"
            if course.resize.stretch
            else f"the shorter side {course.resize.short} pixels, the longer at most {course.resize.long}"
        )
        + "; the model normalises them itself.",
        f"* {summary['parameters']['student']:,} parameters, {summary['macs']['student'] / 1e9:,.2f} billion "
        f"multiply-adds for a picture of {summary['macs_size'][0]} x {summary['macs_size'][1]} pixels.",
        "",
        "## How good it is",
        "",
        f"On {truth}, last epoch, COCO's average precision in per cent:",
        "",
        "| | AP | AP50 | AP75 | small | medium | large |",
        "|---|---|---|---|---|---|---|",
        *(_row(f"its {_KIND[kind]}", of) for kind, of in scores.items()),
    ]
    if summary["scores"]["teacher"]:
        lines += [_row(f"teacher's {_KIND[kind]}", of) for kind, of in summary["scores"]["teacher"].items()]
    lines += [
        "",
        "One training run with one seed: differences of this size between runs are usual; see the report for controls.",
        "",
        *origin_lines(teacher, student.facts.name, course.student_origin, summary["method"]),
    ]
    return "\n".join(lines)


_KIND = {"bbox": "boxes", "segm": "masks"}


def _row(name: str, scores: dict[str, float | None]) -> str:
    values = (scores[key] for key in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"))
    return f"| {name} | " + " | ".join("–" if value is None else f"{100 * value:.1f}" for value in values) + " |"
