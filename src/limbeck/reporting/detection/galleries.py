"""Pictures for the page: mistakes cut out of their images, and whole images with what each model sees on them."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limbeck.reporting.blocks import Gallery, Picture
from limbeck.reporting.detection.choice import FALSE_ALARM, GOOD, MISSED, TAUGHT
from limbeck.reporting.detection.mistakes import (
    BACKGROUND,
    CROWD,
    DUPLICATE,
    FALSE_KINDS,
    MISS_KINDS,
    FalsePositive,
    Judged,
    Miss,
)
from limbeck.reporting.detection.pictures import SamplePicture
from limbeck.reporting.detection.stored import ModelDetections, StoredDetections
from limbeck.reporting.drawing import Style, draw_objects
from limbeck.reporting.wording import capital, counted

PER_KIND = 5
CUT_SIDE, WHOLE_SIDE = 220, 348

# Of a mistake's longer side; what lies around it tells why it was made.
CONTEXT = 2.2
SMALLEST_CUT = 0.25  # of the picture's longer side

REASONS = {
    TAUGHT: "the teacher finds what the student misses",
    FALSE_ALARM: "a sure false positive of the {model}",
    MISSED: "objects that the {model} misses",
    GOOD: "no mistake",
}


def false_positive_galleries(
    stored: StoredDetections, pictures: Sequence[SamplePicture], mistakes: Sequence[FalsePositive]
) -> list[Gallery]:
    """The student's surest false positives of each kind, as far as their images were kept."""
    by_number = {picture.number: picture for picture in pictures}
    galleries = []
    for kind in FALSE_KINDS:
        all_of_kind = [mistake for mistake in mistakes if mistake.kind == kind]
        shown = [mistake for mistake in all_of_kind if mistake.image in by_number][:PER_KIND]
        if shown:
            cuts = [_false_positive(stored, by_number[mistake.image], mistake) for mistake in shown]
            galleries.append(Gallery(f"{capital(kind)} ({len(shown)} of {len(all_of_kind)})", cuts))
    return galleries


def miss_galleries(
    stored: StoredDetections, pictures: Sequence[SamplePicture], missed: Sequence[Miss]
) -> list[Gallery]:
    """The largest objects that the student misses, by the reason, as far as their images were kept."""
    by_number = {picture.number: picture for picture in pictures}
    galleries = []
    for kind in MISS_KINDS:
        all_of_kind = [miss for miss in missed if miss.kind == kind]
        shown = [miss for miss in all_of_kind if miss.image in by_number][:PER_KIND]
        if shown:
            cuts = [_miss(stored, by_number[miss.image], miss) for miss in shown]
            galleries.append(Gallery(f"{capital(kind)} ({len(shown)} of {len(all_of_kind)})", cuts))
    return galleries


def side_by_side(stored: StoredDetections, picture: SamplePicture) -> Gallery:
    """One image three times: what is annotated, what the student sees, and what the teacher sees."""
    truth = stored.truths[picture.number]
    names = [
        stored.class_names[label] + (" (crowd)" if crowd else "")
        for label, crowd in zip(truth.labels, truth.crowd, strict=True)
    ]
    scale = _scale(stored, picture)
    drawn = draw_objects(
        picture.image, truth.boxes * scale, truth.labels, stored.class_names, captions=names, style="truth",
        masks=_masks(picture, "truth", len(truth.labels)), side=WHOLE_SIDE,
    )  # fmt: skip
    objects, crowds = int((~truth.crowd).sum()), int(truth.crowd.sum())
    crowded = (f"and {counted(crowds, 'crowd')}",) if crowds else ()
    shown = [Picture(data_uri(drawn), f"Truth: {counted(objects, 'object')}", crowded)]
    for who, model in (("student", stored.student), ("teacher", stored.teacher)):
        if model is not None:
            shown.append(_seen(stored, picture, who, model))
    why = REASONS.get(picture.why, "").format(model=_learner(stored))
    return Gallery(f"Image {stored.ids[picture.number]}" + (f": {why}" if why else ""), shown, columns=len(shown))


def data_uri(image: Image.Image) -> str:
    """The image as a JPEG in a data URI, with sharp colours."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _seen(stored: StoredDetections, picture: SamplePicture, who: str, model: ModelDetections) -> Picture:
    judged, truth = model.images[picture.number], stored.truths[picture.number]
    rows = judged.shown(model.threshold)
    drawn = draw_objects(
        picture.image, judged.boxes[:rows] * _scale(stored, picture), judged.labels[:rows], stored.class_names,
        scores=judged.scores[:rows], masks=_masks(picture, who, rows), side=WHOLE_SIDE,
    )  # fmt: skip
    right = int((judged.found[:rows] >= 0).sum())
    false = int((judged.found[:rows] != CROWD).sum()) - right
    title = capital(_learner(stored) if who == "student" else who)
    return Picture(data_uri(drawn), f"{title}: {right} of {int((~truth.crowd).sum())} found, {false} false")


def _false_positive(stored: StoredDetections, picture: SamplePicture, mistake: FalsePositive) -> Picture:
    judged, truth = stored.student.images[mistake.image], stored.truths[mistake.image]
    others = [] if mistake.object is None else [mistake.object]
    drawn = _cut(stored, picture, judged, [mistake.row], others, judged.boxes[mistake.row], named="prediction")
    title = f"{stored.class_names[int(judged.labels[mistake.row])]} {mistake.score:.2f}"
    if mistake.object is None:
        line = "touches no object" if mistake.overlap < 0.005 else f"overlaps objects by {mistake.overlap:.2f} at most"
    else:
        name = stored.class_names[int(truth.labels[mistake.object])]
        line = f"{name} is annotated here" if mistake.kind != DUPLICATE else f"this {name} is found by a surer box"
    overlaps = () if mistake.kind == BACKGROUND else (f"IoU {mistake.overlap:.2f}",)
    return Picture(data_uri(drawn), title, (line, *overlaps, f"image {stored.ids[mistake.image]}"))


def _miss(stored: StoredDetections, picture: SamplePicture, miss: Miss) -> Picture:
    judged, truth = stored.student.images[miss.image], stored.truths[miss.image]
    others = [] if miss.detection is None else [miss.detection]
    drawn = _cut(stored, picture, judged, others, [miss.row], truth.boxes[miss.row], named="truth")
    lines = []
    if miss.detection is not None:
        seen = stored.class_names[int(judged.labels[miss.detection])]
        lines.append(f"{_learner(stored)}: {seen} {float(judged.scores[miss.detection]):.2f}")
    if stored.teacher is not None:
        lines.append(f"teacher: {_found_by(stored.teacher, miss)}")
    x1, y1, x2, y2 = (float(side) for side in truth.boxes[miss.row])
    lines.append(f"{x2 - x1:.0f} × {y2 - y1:.0f} pixels, image {stored.ids[miss.image]}")
    return Picture(data_uri(drawn), stored.class_names[int(truth.labels[miss.row])], tuple(lines))


def _learner(stored: StoredDetections) -> str:
    """What the trained model is called: without a teacher it is nobody's student."""
    return "model" if stored.teacher is None else "student"


def _found_by(model: ModelDetections, miss: Miss) -> str:
    judged = model.images[miss.image]
    rows = np.flatnonzero(judged.found == miss.row)
    if not len(rows):
        return "misses it too"
    score = float(judged.scores[rows[0]])
    return f"finds it, {score:.2f}" if score >= model.threshold else f"below its threshold, {score:.2f}"


def _cut(
    stored: StoredDetections,
    picture: SamplePicture,
    judged: Judged,
    detections: list[int],
    objects: list[int],
    around: NDArray[np.float32],
    *,
    named: Style,
) -> Image.Image:
    """A part of the picture with some detections and objects drawn; only one of the two kinds is named in it."""
    truth, scale = stored.truths[picture.number], _scale(stored, picture)
    part, left, upper, factor = _surroundings(picture.image, around * scale)
    shift = np.array([left, upper, left, upper])
    truths = truth.boxes[objects], truth.labels[objects], None, "truth"
    answers = judged.boxes[detections], judged.labels[detections], judged.scores[detections], "prediction"
    # What is named comes last, so that no line crosses its tag.
    for boxes, labels, scores, style in (truths, answers) if named == "prediction" else (answers, truths):
        if len(boxes):
            part = draw_objects(
                part, (boxes * scale - shift) * factor, labels, stored.class_names, scores=scores,
                captions=None if style == named else [""] * len(boxes),
                style="truth" if style == "truth" else "prediction", side=CUT_SIDE,
            )  # fmt: skip
    return part


def _surroundings(image: Image.Image, box: NDArray[np.float64]) -> tuple[Image.Image, int, int, float]:
    """A square around a box as far as the image reaches, enlarged to `CUT_SIDE`; its corner and the enlargement."""
    x1, y1, x2, y2 = (float(value) for value in box)
    side = max(CONTEXT * max(x2 - x1, y2 - y1), SMALLEST_CUT * max(image.size))
    edges = []
    for low, high, length in ((x1, x2, image.width), (y1, y2, image.height)):
        extent = max(1, round(min(side, length)))
        start = int(np.clip(round((low + high - extent) / 2), 0, length - extent))
        edges.append((start, start + extent))
    (left, right), (upper, lower) = edges
    part = image.crop((left, upper, right, lower))
    factor = CUT_SIDE / max(part.size)
    size = (max(1, round(part.width * factor)), max(1, round(part.height * factor)))
    return part.resize(size, Image.Resampling.LANCZOS), left, upper, factor


def _scale(stored: StoredDetections, picture: SamplePicture) -> NDArray[np.float64]:
    """From the image's pixels to the stored picture's."""
    height, width = stored.sizes[picture.number]
    return np.array([picture.image.width / width, picture.image.height / height] * 2)


def _masks(picture: SamplePicture, who: str, rows: int) -> NDArray[np.bool_] | None:
    kept = picture.masks.get(who, {})
    if not kept:
        return None
    masks = np.zeros((rows, picture.image.height, picture.image.width), dtype=bool)
    for row, mask in kept.items():
        if row < rows:
            masks[row] = mask
    return masks
