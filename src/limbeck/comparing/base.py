"""What a comparison is made of: cells, one for each method and seed, and what became of them. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

State = Literal["finished", "failed", "waiting"]


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        method: as written for `--method`; "none" is the control.
        seed: of everything random in it.
        folder: of the run.
        options: of `limbeck.distill` but for `out` and `resume`; plain values, none of them left to the comparison.
    """

    method: str
    seed: int
    folder: Path
    options: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell, read from its folder.

    Attributes:
        method, seed, folder: of the cell.
        state: finished; failed, with the reason in `message`; or waiting, not yet run to its end.
        message: one sentence.
        score: the task's main score on the validation images, 0 to 1, of the last epoch.
        agreement: share of validation images on which student and teacher answer alike; None of detectors.
        seconds_per_epoch: of training, without measuring.
        seconds: of the whole run.
        peak_memory: bytes.
        curve: (M, 2) seconds of training and score at each measurement.
        right: (N,) bool, which validation images it answered rightly, in the data's order; None of detectors.
        labels: (N,) the images' classes; None of detectors.
        class_scores: score of each class by its name; of detectors the average precision.
        teacher_score: the teacher's, on the same images.
        score_name: accuracy, or AP of detectors.
        epochs: that the recipe asks for.
    """

    method: str
    seed: int
    folder: Path
    state: State
    message: str = ""
    score: float | None = None
    agreement: float | None = None
    seconds_per_epoch: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    curve: NDArray[np.float64] = field(default_factory=lambda: _no_curve())
    right: NDArray[np.bool_] | None = None
    labels: NDArray[np.int64] | None = None
    class_scores: dict[str, float] = field(default_factory=dict)
    teacher_score: float | None = None
    score_name: str = "accuracy"
    epochs: int | None = None


def main_score(summary: dict[str, Any]) -> float | None:
    """The main score that a run's summary holds: accuracy, of detectors the average precision of boxes.

    Returns:
        None where there is none, or no finite number.
    """
    detection = summary.get("task") == "detection"
    value: Any = summary
    for key in ("scores", "student", "bbox", "ap") if detection else ("accuracy", "last"):
        value = value.get(key) if isinstance(value, dict) else None
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _no_curve() -> NDArray[np.float64]:
    import numpy

    return numpy.empty((0, 2))
