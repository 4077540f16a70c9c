"""detections.npz: the validation images' objects and what each model detects there, and what of it is right.

Rows of all images stand one after the other, with a count for each image; `K` classes by their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.detection.base import SceneSource
from limbeck.files import atomic_write
from limbeck.reporting.detection.mistakes import (
    CROWD,
    FalsePositive,
    Judged,
    Miss,
    Truth,
    false_positives,
    judge,
    misses,
    operating_point,
)
from limbeck.tasks.detection_scores import Detections

FILE = "detections.npz"

# More of one image is nothing to look at; average precision is computed from all.
KEPT = 100


@dataclass(frozen=True)
class ModelDetections:
    """One model's detections, image by image.

    Attributes:
        images: the best `KEPT` of each image.
        threshold: the score from which on they are drawn and counted as mistakes.
    """

    images: tuple[Judged, ...]
    threshold: float

    def mistakes(self, truths: Sequence[Truth]) -> tuple[list[FalsePositive], list[Miss]]:
        """All false positives, surest first, and all misses, largest first."""
        false: list[FalsePositive] = []
        missed: list[Miss] = []
        for image, (truth, judged) in enumerate(zip(truths, self.images, strict=True)):
            false += false_positives(image, truth, judged, self.threshold)
            missed += misses(image, truth, judged, self.threshold)
        return sorted(false, key=lambda one: -one.score), sorted(missed, key=lambda one: -one.area)

    def counts(self) -> tuple[int, int]:
        """Detections of at least the threshold's score outside crowds, and how many of them are right."""
        found = np.concatenate([judged.found[judged.scores >= self.threshold] for judged in self.images])
        return int((found != CROWD).sum()), int((found >= 0).sum())


@dataclass(frozen=True)
class StoredDetections:
    """What detections.npz holds.

    Attributes:
        class_names: in label order.
        ids: of the N images, as text.
        sizes: (N, 2) height and width in pixels.
        truths: their objects.
        student: what the student detects.
        teacher: what the teacher detects; None without one.
    """

    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    sizes: NDArray[np.int64]
    truths: tuple[Truth, ...]
    student: ModelDetections
    teacher: ModelDetections | None

    @property
    def objects(self) -> int:
        """Objects of all images, crowds left out."""
        return sum(int((~truth.crowd).sum()) for truth in self.truths)


def collect(
    source: SceneSource, student: Sequence[Detections], teacher: Sequence[Detections] | None
) -> StoredDetections:
    """Judge both models' detections of every image of a source."""
    truths = []
    for index in range(len(source)):
        objects = source.objects(index)
        truths.append(Truth(objects.boxes, objects.labels, objects.is_crowd))
    return StoredDetections(
        tuple(source.class_names),
        tuple(str(source.image_id(index)) for index in range(len(source))),
        np.array([source.size(index) for index in range(len(source))], dtype=np.int64).reshape(-1, 2),
        tuple(truths),
        _judge_all(truths, student),
        None if teacher is None else _judge_all(truths, teacher),
    )


def best_first(found: Detections) -> NDArray[np.intp]:
    """The rows of the `KEPT` surest detections of an image, in the order in which they are stored."""
    order: NDArray[np.intp] = np.argsort(-np.asarray(found.scores, dtype=np.float64), kind="stable")[:KEPT]
    return order


def write_stored(folder: Path, stored: StoredDetections) -> None:
    """Write detections.npz."""
    truths = stored.truths
    arrays: dict[str, NDArray[Any]] = {
        "class_names": np.array(stored.class_names, dtype=str),
        "image_id": np.array(stored.ids, dtype=str),
        "size": stored.sizes.astype(np.int32),
        "truth_count": np.array([len(truth.labels) for truth in truths], dtype=np.int32),
        "truth_boxes": np.concatenate([truth.boxes for truth in truths]).astype(np.float32),
        "truth_labels": np.concatenate([truth.labels for truth in truths]).astype(np.int32),
        "truth_crowd": np.concatenate([truth.crowd for truth in truths]).astype(bool),
    }
    for who, model in (("student", stored.student), ("teacher", stored.teacher)):
        if model is not None:
            images = model.images
            arrays |= {
                f"{who}_threshold": np.array(model.threshold, dtype=np.float64),
                f"{who}_count": np.array([len(judged.scores) for judged in images], dtype=np.int32),
                f"{who}_boxes": np.concatenate([judged.boxes for judged in images]).astype(np.float32),
                f"{who}_labels": np.concatenate([judged.labels for judged in images]).astype(np.int32),
                f"{who}_scores": np.concatenate([judged.scores for judged in images]).astype(np.float32),
                f"{who}_found": np.concatenate([judged.found for judged in images]).astype(np.int32),
            }
    with atomic_write(folder / FILE) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_stored(file: Path) -> StoredDetections:
    """Read detections.npz.

    Raises:
        ValueError: its arrays do not fit together.
        KeyError: an array is missing.
    """
    with np.load(file, allow_pickle=False) as opened:
        arrays = {name: opened[name] for name in opened.files}
    ids = tuple(str(name) for name in arrays["image_id"])
    names = tuple(str(name) for name in arrays["class_names"])
    rows = _rows(arrays, "truth", ("boxes", "labels", "crowd"), len(ids))
    _check_labels(arrays["truth_labels"], names)
    truths = tuple(
        Truth(boxes, labels.astype(np.int64), crowd.astype(bool)) for boxes, labels, crowd in zip(*rows, strict=True)
    )
    sizes = arrays["size"].astype(np.int64)
    if sizes.shape != (len(ids), 2):
        raise ValueError(f"it holds {len(ids)} images and sizes {sizes.shape}")
    teacher = _read_model(arrays, "teacher", names, truths) if "teacher_scores" in arrays else None
    return StoredDetections(names, ids, sizes, truths, _read_model(arrays, "student", names, truths), teacher)


def _judge_all(truths: Sequence[Truth], found: Sequence[Detections]) -> ModelDetections:
    images = []
    for truth, detections in zip(truths, found, strict=True):
        rows = best_first(detections)
        boxes, labels, scores = (np.asarray(a)[rows] for a in (detections.boxes, detections.labels, detections.scores))
        images.append(judge(truth, boxes, labels, scores))
    return ModelDetections(tuple(images), operating_point(truths, images))


def _read_model(
    arrays: Mapping[str, NDArray[Any]], who: str, names: Sequence[str], truths: Sequence[Truth]
) -> ModelDetections:
    rows = _rows(arrays, who, ("boxes", "labels", "scores", "found"), len(truths))
    _check_labels(arrays[f"{who}_labels"], names)
    images = []
    for boxes, labels, scores, found, truth in zip(*rows, truths, strict=True):
        if len(found) and int(found.max()) >= len(truth.labels):
            raise ValueError(f"a detection of the {who} finds object {int(found.max())} of {len(truth.labels)}")
        images.append(Judged(boxes, labels.astype(np.int64), scores, found.astype(np.int64)))
    return ModelDetections(tuple(images), float(arrays[f"{who}_threshold"]))


def _rows(arrays: Mapping[str, NDArray[Any]], who: str, parts: Sequence[str], images: int) -> list[list[NDArray[Any]]]:
    """Each part cut into its images."""
    counts = arrays[f"{who}_count"]
    total = int(counts.sum())
    for part in parts:
        array = arrays[f"{who}_{part}"]
        if len(counts) != images or len(array) != total or (part == "boxes" and array.shape != (total, 4)):
            raise ValueError(f"the {who}'s {part} are {array.shape}, but {images} images have {total} rows")
    return [np.split(arrays[f"{who}_{part}"], np.cumsum(counts)[:-1]) for part in parts]


def _check_labels(labels: NDArray[Any], names: Sequence[str]) -> None:
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= len(names)):
        raise ValueError(f"a label is {int(labels.max())}, but there are {len(names)} classes")
