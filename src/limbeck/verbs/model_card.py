"""The model card: what the student is, what it learned from, and under which licences."""

from typing import Any

import limbeck
from limbeck.models.base import Provenance, VisionModel
from limbeck.models.detection.base import Detector
from limbeck.models.several import SeveralModels
from limbeck.recipe import NO_DATA
from limbeck.verbs.preparation import Course


def model_card(course: Course, summary: dict[str, Any]) -> str:
    """MODEL_CARD.md of a finished run."""
    recipe, student, teacher = course.recipe, course.student, course.teacher
    accuracy = summary["accuracy"]["last"]
    lines = [
        f"# {student.facts.name}" + (f", distilled from {teacher.facts.name}" if teacher is not None else ""),
        "",
        f"Made with limbeck {limbeck.__version__} " + learned_from(recipe),
        "",
        "## What it is",
        "",
        f"* Input: RGB images with values in [0, 1], resized to {student.facts.input_size[0]} x {student.facts.input_size[1]} "
        "pixels; the model normalises them itself.",
        f"* Output: logits of {student.facts.num_classes} classes"
        + (f": {some(summary['class_names'])}." if summary["class_names"] else "."),
        f"* {summary['parameters']['student']:,} parameters, {summary['macs']['student'] / 1e6:,.1f} million "
        "multiply-adds per image.",
        "",
        "## How good it is",
        "",
        f"* Accuracy on the validation images, last epoch: {100 * accuracy:.2f} %."
        if accuracy is not None
        else "* Not measured: the data has no labelled validation images.",
    ]
    if summary["teacher_accuracy"] is not None:
        lines.append(f"* Its teacher's accuracy on the same images: {100 * summary['teacher_accuracy']:.2f} %.")
    if summary["agreement"] is not None:
        lines.append(f"* It gives the teacher's answer to {100 * summary['agreement']:.2f} % of the images.")
    lines += [
        "* One training run with one seed: differences of this size between runs are usual; see the report for controls.",
        "",
        *origin_lines(teacher, student.facts.name, course.student_origin, summary["method"]),
    ]
    return "\n".join(lines)


def learned_from(recipe: Any) -> str:
    """What a run's training images were, as the end of a sentence."""
    if recipe.data == NO_DATA:
        return f"without data: from images made for its teacher by `{recipe.synthesis}`."
    return f"from `{recipe.data}`."


def origin_lines(
    teacher: VisionModel | Detector | None, student: str, student_origin: Provenance, method: str | None
) -> list[str]:
    """Where the weights come from and under which licences, as lines of Markdown."""
    lines = [
        "## Where it comes from",
        "",
        "| part | name | licence | source | weights (sha256) |",
        "|---|---|---|---|---|",
    ]
    if teacher is not None:
        teachers = teacher.members if isinstance(teacher, SeveralModels) else (teacher,)
        lines += [_row("teacher", of.facts.name, of.provenance) for of in teachers]
    lines += [_row("student, before training", student, student_origin), ""]
    if teacher is not None:
        lines.append(
            f"The student learned from the teacher's outputs by the method `{method}`. Licences of a teacher's "
            f"weights may reach models distilled from it; the teacher's is: **{teacher.provenance.licence}**. The training "
            "images have a licence of their own, which this tool does not know."
        )
    elif method not in (None, "none"):
        lines.append(
            f"Beside the labels the student learned from its own answers, without a teacher, by the method `{method}`. The "
            "training images have a licence of their own, which this tool does not know."
        )
    return [*lines, "", "The exact recipe is in `recipe.yaml`, versions and hashes in `provenance.yaml`.", ""]


def _row(part: str, name: str, origin: Provenance) -> str:
    digest = f"`{origin.weights_sha256[:16]}…`" if origin.weights_sha256 else "–"
    return f"| {part} | {name} | {origin.licence} | {origin.source} | {digest} |"


def some(names: list[str], most: int = 20) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
