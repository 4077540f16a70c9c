"""What a teacher found in images that nobody has annotated, as annotations to learn from.

What the teacher is sure enough of is learned as if it were true. (Detectors that learn from their own labels, such as
Unbiased Teacher, Liu et al., arXiv:2102.09480, ask for a score of 0.7; the default of 0.4 misses fewer objects.) The labels
are kept as one of COCO's annotation files with a `score` for each annotation, so that a person can look at them, a
stopped run finds them, and `coco:FILE,FOLDER` names them.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from limbeck.data.detection.base import Objects, SceneSource
from limbeck.data.detection.masks import Segment, encode_rle, segment_area
from limbeck.errors import UserError
from limbeck.files import atomic_write

FILE_NAME = "pseudo_labels.json"


class Answer(Protocol):
    """What a teacher found in one image: a `Found` on the CPU, or a `limbeck.tasks.detection_scores.Detections`."""

    @property
    def boxes(self) -> Any:
        """(N, 4), x1, y1, x2, y2 in pixels of the original image."""

    @property
    def labels(self) -> Any:
        """(N,) integers."""

    @property
    def scores(self) -> Any:
        """(N,) in [0, 1]."""

    @property
    def masks(self) -> Any:
        """N run lengths, or (N, height, width) bool; None for boxes only."""


def keep_confident(found: Answer, height: int, width: int, *, min_score: float = 0.4) -> Objects:
    """The objects of one image of which the teacher is sure enough.

    Args:
        found: boxes are clipped to the image, and what then has no area, or no pixel in its mask, is left out.
        height, width: of the image.
        min_score: the lowest score that is kept.

    Returns:
        Objects with scores; masks as run lengths where the teacher gives masks.
    """
    limits = np.array([width, height, width, height], dtype=np.float32)
    boxes = np.clip(np.asarray(found.boxes, dtype=np.float32).reshape(-1, 4), 0, limits)
    scores = np.asarray(found.scores, dtype=np.float32)
    labels = np.asarray(found.labels, dtype=np.int64)
    sides = boxes[:, 2:] - boxes[:, :2]
    area = sides.prod(axis=1)
    kept = (scores >= min_score) & (sides > 0).all(axis=1)
    segments: tuple[Segment, ...] | None = None
    if found.masks is not None:
        all_segments = {row: _run_lengths(found.masks[row]) for row in np.flatnonzero(kept).tolist()}
        for row, segment in all_segments.items():
            area[row] = segment_area(segment)
        kept &= area > 0
        segments = tuple(segment for row, segment in all_segments.items() if kept[row])
    return Objects(boxes[kept], labels[kept], np.zeros(kept.sum(), dtype=np.bool_), area[kept], segments, scores[kept])


def write_pseudo_labels(
    file: Path,
    images: SceneSource,
    folder: Path,
    found: Iterable[Answer],
    class_names: Sequence[str],
    *,
    teacher: str,
    min_score: float = 0.4,
    keep_background: bool = False,
) -> list[str]:
    """Write the labels of many images; nothing is there until all are.

    Args:
        file: to write, usually `FILE_NAME` in the run's folder.
        images: files below `folder`.
        folder: of the images.
        found: for each image in order; taken one at a time, so that the masks of one are in memory.
        class_names: the teacher's, in label order.
        teacher: its name, for the file's head.
        min_score: as in `keep_confident`.
        keep_background: keep images in which the teacher is sure of nothing, to be learned as showing none of the
            classes; else they are left out, since an unsure teacher has not said that.

    Returns:
        Notes for the user: what was kept and left out.

    Raises:
        UserError: the teacher is sure of nothing in any image.
    """
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    empty, unsure, best = 0, 0, 0.0
    for index, one in zip(range(len(images)), found, strict=True):
        height, width = images.size(index)
        objects = keep_confident(one, height, width, min_score=min_score)
        best = max(best, float(one.scores.max())) if len(one.scores) else best
        unsure += len(one.scores) - len(objects)
        empty += len(objects) == 0
        if len(objects) == 0 and not keep_background:
            continue
        image_id = images.image_id(index)
        name = Path(images.describe(index)).relative_to(folder).as_posix()
        entries.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations += _annotations(objects, image_id, first=len(annotations) + 1)
    if not annotations:
        raise UserError(
            f"The teacher {teacher} finds nothing in {len(images)} images of {folder} with a score of {min_score:g} or more (its "
            f"best is {best:.2f}). Lower the threshold, or give images that show what it knows: "
            f"{', '.join(class_names[:5])}{', ...' if len(class_names) > 5 else ''}."
        )
    content = {
        "info": {"description": "Pseudo-labels", "teacher": teacher, "min_score": min_score},
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names, start=1)],
    }
    with atomic_write(file) as out:
        out.write(json.dumps(content).encode())
    fate = "count as background" if keep_background else "are left out"
    notes = [
        f"The teacher labelled {len(annotations)} objects in {len(images) - empty} of {len(images)} images with a score of "
        f"{min_score:g} or more; {unsure} less sure ones are left out."
    ]
    if empty:
        notes.append(f"{empty} images in which the teacher is sure of nothing {fate}.")
    return notes


def _run_lengths(mask: Any) -> dict[str, Any]:
    return mask if isinstance(mask, dict) else encode_rle(np.asarray(mask))


def _annotations(objects: Objects, image_id: int | str, first: int) -> list[dict[str, Any]]:
    """COCO's entries of one image."""
    assert objects.scores is not None
    entries: list[dict[str, Any]] = []
    for place, (label, (x1, y1, x2, y2)) in enumerate(zip(objects.labels, objects.boxes.tolist(), strict=True)):
        entry: dict[str, Any] = {
            "id": first + place,
            "image_id": image_id,
            "category_id": int(label) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": float(objects.area[place]),
            "iscrowd": 0,
            "score": float(objects.scores[place]),
        }
        if objects.segments is not None:
            entry["segmentation"] = objects.segments[place]
        entries.append(entry)
    return entries
