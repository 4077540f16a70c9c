"""Which images are worth looking at: disagreements and mistakes before what everyone gets right."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from limbeck.contact_sheet import fit
from limbeck.reporting.calibration import softmax
from limbeck.reporting.run_reader import Predictions, Samples
from limbeck.reporting.turns import in_turn

# Pictures are kept small, so that two dozen of them do not weigh more than the rest of the page.
SIDE = 144


@dataclass(frozen=True)
class Answer:
    """A model's answer to one image: the class, its confidence (0 to 1), and whether it is right."""

    predicted: int
    confidence: float
    right: bool


@dataclass(frozen=True)
class ChosenSample:
    """One image for the page.

    Attributes:
        source: the picture as a PNG data URI.
        number: its place in predictions.npz.
        truth: class index.
        student: the student's answer.
        teacher: the teacher's; None without a teacher.
    """

    source: str
    number: int
    truth: int
    student: Answer
    teacher: Answer | None


def choose_samples(predictions: Predictions, samples: Samples, count: int = 24) -> list[ChosenSample]:
    """Pick images for the page, mistakes and disagreements first.

    The kinds take turns: only the student wrong, both wrong but differently, both wrong alike, only the teacher wrong;
    places that are left go to images that all get right. The first kinds start with the student's most confident
    answers, the last one with its least confident.

    Args:
        predictions: of the labelled validation images.
        samples: images stored with the run; unlabelled ones are passed over.
        count: how many to pick at most.
    """
    place = {int(number): row for row, number in enumerate(predictions.index)}
    stored = [(position, place[int(n)]) for position, n in enumerate(samples.index) if int(n) in place]
    if not stored:
        return []
    rows = np.array([row for _, row in stored])
    truth = predictions.labels[rows]
    student = softmax(predictions.student_logits[rows])
    teacher = None if predictions.teacher_logits is None else softmax(predictions.teacher_logits[rows])
    student_answers = _answers(student, truth)
    teacher_answers = [None] * len(rows) if teacher is None else _answers(teacher, truth)
    kinds: list[list[int]] = [[] for _ in range(5)]
    for i, (mine, other) in enumerate(zip(student_answers, teacher_answers, strict=True)):
        kinds[_kind(mine, other)].append(i)
    for kind, members in enumerate(kinds):
        sign = 1 if kind == 4 else -1
        members.sort(key=lambda i: sign * student_answers[i].confidence)
    picked = [*in_turn(kinds[:4]), *kinds[4]][:count]
    # The page shows the kinds one after the other, so that like stands beside like.
    picked.sort(key=lambda i: _kind(student_answers[i], teacher_answers[i]))
    return [
        ChosenSample(
            data_uri(Image.fromarray(samples.images[stored[i][0]])),
            int(predictions.index[rows[i]]),
            int(truth[i]),
            student_answers[i],
            teacher_answers[i],
        )
        for i in picked
    ]


def data_uri(image: Image.Image, side: int = SIDE) -> str:
    """The image as a PNG in a data URI, fitted into `side` pixels; small ones enlarged without smoothing."""
    buffer = io.BytesIO()
    fit(image, side).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _answers(probabilities: np.ndarray, truth: np.ndarray) -> list[Answer]:
    top = probabilities.argmax(axis=1)
    return [Answer(int(c), float(p[c]), bool(c == t)) for c, p, t in zip(top, probabilities, truth, strict=True)]


def _kind(student: Answer, teacher: Answer | None) -> int:
    if teacher is None:
        return 4 if student.right else 0
    if student.right:
        return 4 if teacher.right else 3
    if teacher.right:
        return 0
    return 1 if student.predicted != teacher.predicted else 2
