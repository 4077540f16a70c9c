"""detection_scores.json: average precision of boxes and masks, in all, by class, and as precision-recall curves."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.files import atomic_write
from limbeck.tasks.detection_scores import DetectionScores

FILE = "detection_scores.json"
DIGITS = 6

Scores = Mapping[str, Mapping[str, DetectionScores]]
"""By model ("student", "teacher") and by what was compared ("bbox", "segm")."""


@dataclass(frozen=True)
class StoredScores:
    """What the file says of one model's boxes or masks; 0 to 1, NaN where there is nothing to measure.

    Attributes:
        summary: ap, ap50, ap75, ap_small, ap_medium, ap_large, ar100; None for NaN.
        class_ap: (K,).
        class_ap50: (K,).
        recall_points: (R,).
        precision: (K, R) at IoU 0.50, 0 where that recall is not reached.
        thresholds: (K, R) the scores at which those recalls are reached.
        objects: (K,), crowds left out.
        detections: (K,).
    """

    summary: Mapping[str, float | None]
    class_ap: NDArray[np.float64]
    class_ap50: NDArray[np.float64]
    recall_points: NDArray[np.float64]
    precision: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    objects: NDArray[np.int64]
    detections: NDArray[np.int64]


@dataclass(frozen=True)
class ScoreFile:
    """The whole file: class names, and the scores by model and by what was compared."""

    class_names: tuple[str, ...]
    models: Mapping[str, Mapping[str, StoredScores]]

    def of(self, who: str, iou: str) -> StoredScores | None:
        """One model's scores; None where they were not measured."""
        return self.models.get(who, {}).get(iou)


def write_scores(folder: Path, class_names: tuple[str, ...], scores: Scores) -> None:
    """Write detection_scores.json."""
    values: dict[str, Any] = {"class_names": list(class_names), "models": {}}
    for who, kinds in scores.items():
        values["models"][who] = {iou: _plain(found) for iou, found in kinds.items()}
    with atomic_write(folder / FILE) as file:
        file.write(json.dumps(values, allow_nan=False).encode())


def read_scores(file: Path) -> ScoreFile:
    """Read detection_scores.json.

    Raises:
        ValueError: it is no JSON, or its lists do not fit together.
        KeyError: a part is missing.
        TypeError: a part is of another kind.
    """
    values = json.loads(file.read_text(encoding="utf-8"))
    names = tuple(str(name) for name in values["class_names"])
    models = {
        str(who): {str(iou): _stored(found, len(names)) for iou, found in kinds.items()}
        for who, kinds in values["models"].items()
    }
    return ScoreFile(names, models)


def _plain(scores: DetectionScores) -> dict[str, Any]:
    return {
        "summary": scores.summary(),
        "images": scores.images,
        "crowds": scores.crowds,
        "objects": scores.objects.tolist(),
        "detections": scores.detections.tolist(),
        "class_ap": _numbers(scores.class_ap),
        "class_ap50": _numbers(scores.class_ap50),
        "recall_points": _numbers(scores.recall_points),
        "precision": [_numbers(row) for row in scores.precision],
        "thresholds": [_numbers(row) for row in scores.thresholds],
    }


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else round(value, DIGITS) for value in values.tolist()]


def _stored(values: Mapping[str, Any], classes: int) -> StoredScores:
    recall = _array(values["recall_points"])
    stored = StoredScores(
        dict(values["summary"]),
        _array(values["class_ap"]),
        _array(values["class_ap50"]),
        recall,
        _array(values["precision"]).reshape(classes, -1),
        _array(values["thresholds"]).reshape(classes, -1),
        np.array(values["objects"], dtype=np.int64),
        np.array(values["detections"], dtype=np.int64),
    )
    lengths = {len(stored.class_ap), len(stored.class_ap50), len(stored.objects), len(stored.detections)}
    shape = (classes, len(recall))
    if lengths != {classes} or stored.precision.shape != shape or stored.thresholds.shape != shape:
        raise ValueError(f"its lists are not all of {classes} classes")
    return stored


def _array(values: Any) -> NDArray[np.float64]:
    # JSON lacks NaN, for which None stands; numpy makes NaN of it.
    return np.array(values, dtype=np.float64)
