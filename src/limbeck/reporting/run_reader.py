"""What a run's folder says, read without a model and without failing on what is missing.

A run may have been stopped at any moment, so every file may be absent, cut short or hold NaNs. What cannot be read is
left out and listed with the reason; only a folder that is no run at all is refused.
"""

import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from limbeck.errors import UserError
from limbeck.recipe import NO_TEACHER
from limbeck.reporting.detection import pictures, score_file, stored
from limbeck.reporting.detection.pictures import SamplePicture
from limbeck.reporting.detection.score_file import ScoreFile
from limbeck.reporting.detection.stored import StoredDetections

TASKS = ("classification", "detection")

Record = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Predictions:
    """What the models said about the labelled validation images.

    Attributes:
        labels: (N,) int64, all in [0, K).
        student_logits: (N, K).
        teacher_logits: (N, K), or None without a teacher.
        index: (N,) places of these images in predictions.npz, which also lists unlabelled ones.
    """

    labels: NDArray[np.int64]
    student_logits: NDArray[np.float32]
    teacher_logits: NDArray[np.float32] | None
    index: NDArray[np.int64]

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.student_logits.shape[1])

    @property
    def student_top(self) -> NDArray[np.int64]:
        """(N,) the student's answers."""
        return _top(self.student_logits)

    @property
    def teacher_top(self) -> NDArray[np.int64] | None:
        """(N,) the teacher's answers."""
        return None if self.teacher_logits is None else _top(self.teacher_logits)


@dataclass(frozen=True)
class Similarity:
    """CKA between the levels of the two models: `cka` is (S, T)."""

    cka: NDArray[np.float64]
    student_levels: list[str]
    teacher_levels: list[str]


@dataclass(frozen=True)
class Samples:
    """Validation images to look at: `images` (M, H, W, 3) uint8, `index` (M,) their places in predictions.npz."""

    images: NDArray[np.uint8]
    index: NDArray[np.int64]


@dataclass
class RunRecord:
    """Everything a run's folder says.

    Attributes:
        path: the folder.
        recipe: recipe.yaml; empty when missing.
        provenance: provenance.yaml (versions, data, weights); empty when missing.
        summary: summary.json; empty when missing.
        train, val, gradients, watch: records of metrics.jsonl by kind, in order of their step.
        findings: what the run's watcher found, oldest first; None where nothing watched.
        predictions, similarity, samples: what a classification run leaves; None when missing.
        detections, scores, pictures: what a detection run leaves; None or empty when missing.
        missing: what could not be read, and why.
    """

    path: Path
    recipe: Record = field(default_factory=dict)
    provenance: Record = field(default_factory=dict)
    summary: Record = field(default_factory=dict)
    train: list[Record] = field(default_factory=list)
    val: list[Record] = field(default_factory=list)
    gradients: list[Record] = field(default_factory=list)
    watch: list[Record] = field(default_factory=list)
    findings: list[Record] | None = None
    predictions: Predictions | None = None
    similarity: Similarity | None = None
    samples: Samples | None = None
    detections: StoredDetections | None = None
    scores: ScoreFile | None = None
    pictures: list[SamplePicture] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the run calls itself, or its folder's name."""
        return str(self.summary.get("name") or self.path.resolve().name)

    @property
    def task(self) -> str:
        """What the run learned, one of `TASKS`: as it says itself; else by what it measured."""
        for given in (self.summary.get("task"), self.recipe.get("task")):
            if given in TASKS:
                return str(given)
        return "detection" if any("ap" in record for record in self.val) else "classification"

    @property
    def has_teacher(self) -> bool:
        """Whether anything in the folder speaks of a teacher."""
        if self.recipe.get("teacher") == NO_TEACHER:
            return False
        return bool(
            self.summary.get("verb") == "distill"
            or self.recipe.get("teacher")
            or (self.predictions is not None and self.predictions.teacher_logits is not None)
        )

    @property
    def has_method(self) -> bool:
        """Whether the student learned from more than labels: from a teacher, or from itself."""
        return self.has_teacher or str(self.recipe.get("method", "none")).strip() != "none"

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy of the last epoch, 0 to 1: the summary's, or the last one measured before a stop."""
        return number(within(self.summary, "accuracy", "last"), self.last_measured("accuracy"))

    @property
    def teacher_accuracy(self) -> float | None:
        """The teacher's accuracy on the same images, 0 to 1."""
        counted = None
        if self.predictions is not None and self.predictions.teacher_top is not None and len(self.predictions.labels):
            counted = float((self.predictions.teacher_top == self.predictions.labels).mean())
        return number(self.summary.get("teacher_accuracy"), counted)

    @property
    def agreement(self) -> float | None:
        """Share of validation images on which student and teacher give the same answer."""
        return number(self.summary.get("agreement"), self.last_measured("agreement"))

    @property
    def class_names(self) -> list[str]:
        """A name for each class; its number where the run gives none."""
        given = self.summary.get("class_names")
        names = [str(name) for name in given] if isinstance(given, list) else []
        count = self.predictions.num_classes if self.predictions is not None else len(names)
        return names[:count] + [str(i) for i in range(len(names), count)]

    def last_measured(self, name: str) -> float | None:
        """The last finite value of a validation metric."""
        return next((v for v in (number(r.get(name)) for r in reversed(self.val)) if v is not None), None)


def number(*values: Any) -> float | None:
    """The first of `values` that is a finite number; None if there is none."""
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def within(record: Record, *keys: str) -> Any:
    """The value under nested keys; None where one of them is missing."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def read_run(path: str | Path) -> RunRecord:
    """Read a run's folder.

    Args:
        path: the folder that training wrote.

    Raises:
        FileNotFoundError: there is no such folder.
        UserError: the folder holds neither metrics.jsonl nor summary.json, so it is no run.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"There is no run folder {folder}.")
    if not (folder / "metrics.jsonl").is_file() and not (folder / "summary.json").is_file():
        raise UserError(
            f"{folder} is not the folder of a run: it holds neither metrics.jsonl nor summary.json. Give the folder "
            "that limbeck train or limbeck distill wrote (its --out); if that run was stopped before its first "
            "measurement, continue it with --resume first."
        )
    run = RunRecord(folder)
    run.recipe = _optional(run, "recipe.yaml", "The recipe", _read_yaml) or {}
    if (folder / "provenance.yaml").is_file():
        run.provenance = _optional(run, "provenance.yaml", "Versions and hashes", _read_yaml) or {}
    run.summary = _optional(run, "summary.json", "The final numbers", _read_json) or {}
    records = _optional(run, "metrics.jsonl", "The learning curves", lambda file: _read_metrics(run, file)) or []
    kinds = {"train": run.train, "val": run.val, "gradients": run.gradients, "watch": run.watch}
    for kind, kept in kinds.items():
        kept += _in_order([r for r in records if r.get("kind") == kind])
    run.findings = _findings(run, records)
    if run.task == "detection":
        _read_detection(run)
    else:
        _read_classification(run)
    return run


def _read_classification(run: RunRecord) -> None:
    run.predictions = _optional(
        run, "predictions.npz", "Calibration, confusions, per-class accuracy and sample images", _read_predictions
    )
    run.samples = _optional(run, "samples.npz", "The sample images", _read_samples)
    if run.has_teacher:
        run.similarity = _optional(run, "cka.npz", "The similarity of the two models' levels", _read_similarity)
        if run.predictions is not None and run.predictions.teacher_logits is None:
            run.missing["The teacher's calibration and answers"] = (
                "predictions.npz holds no teacher logits of the student's classes"
            )


def _read_detection(run: RunRecord) -> None:
    run.scores = _optional(
        run, score_file.FILE, "The tables of average precision and precision-recall curves", score_file.read_scores
    )
    what = "Mistakes by kind, their galleries, and the models side by side"
    run.detections = _optional(run, stored.FILE, what, stored.read_stored)
    if run.detections is None:
        return
    number_of_images = len(run.detections.ids)
    read = _optional(
        run, pictures.FILE, "The sample images", lambda file: pictures.read_pictures(file, number_of_images)
    )
    run.pictures, lost = read or ([], [])
    if lost:
        are = "file of samples/ is" if len(lost) == 1 else "files of samples/ are"
        run.missing["Some sample images"] = f"{len(lost)} {are} missing or damaged: {', '.join(lost)}"
    if run.has_teacher and run.detections.teacher is None:
        run.missing["The teacher's detections"] = f"{stored.FILE} holds the student's alone"


def _top(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.asarray(logits.argmax(axis=1), dtype=np.int64)


def _optional(run: RunRecord, name: str, what: str, read: Callable[[Path], T]) -> T | None:
    file = run.path / name
    if not file.is_file():
        ended = (run.path / "summary.json").is_file()
        run.missing[what] = f"{name} is not in the run's folder" + ("" if ended else "; the run has not ended")
        return None
    try:
        return read(file)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        run.missing[what] = f"{name} cannot be read: {reason}"
        return None


def _read_yaml(file: Path) -> Record:
    return _mapping(yaml.safe_load(file.read_text(encoding="utf-8")))


def _read_json(file: Path) -> Record:
    return _mapping(json.loads(file.read_text(encoding="utf-8")))


def _mapping(value: Any) -> Record:
    if not isinstance(value, dict):
        raise ValueError("it does not hold named values")
    return value


def _read_metrics(run: RunRecord, file: Path) -> list[Record]:
    records, bad = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            records.append(_mapping(json.loads(line)))
        except ValueError:
            bad += 1
    if bad:
        run.missing["Some measurements"] = (
            f"{bad} line{'s' * (bad > 1)} of metrics.jsonl cannot be read and were left out"
        )
    return records


def _in_order(records: list[Record]) -> list[Record]:
    # A run killed between two checkpoints repeats some steps after it resumes; the later record is the true one.
    by_step: dict[float, Record] = {}
    for place, record in enumerate(records):
        step = number(record.get("step"))
        by_step[float(place) if step is None else step] = record
    return [by_step[step] for step in sorted(by_step)]


def _findings(run: RunRecord, records: list[Record]) -> list[Record] | None:
    """The summary's list; of a run that has not ended, its records, of which there are none before the first epoch's end."""
    told = run.summary.get("findings")
    if isinstance(told, list):
        return [finding for finding in told if isinstance(finding, dict)]
    seen = [record for record in records if record.get("kind") == "finding"]
    return seen if seen or run.watch else None


def _load(file: Path) -> dict[str, NDArray[Any]]:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_predictions(file: Path) -> Predictions:
    arrays = _load(file)
    labels, student, teacher = arrays["labels"], arrays["student_logits"], arrays.get("teacher_logits")
    if student.ndim != 2 or labels.shape != student.shape[:1] or (teacher is not None and len(teacher) != len(labels)):
        raise ValueError("labels and logits have different numbers of images")
    if len(labels) and int(labels.max()) >= student.shape[1]:
        raise ValueError(f"a label is {int(labels.max())}, but there are {student.shape[1]} classes")
    if not (np.isfinite(student).all() and (teacher is None or np.isfinite(teacher).all())):
        raise ValueError("some logits are not finite numbers")
    # A teacher with other classes than the student cannot be held against the same labels.
    if teacher is not None and teacher.shape != student.shape:
        teacher = None
    index = np.flatnonzero(labels >= 0)
    if not len(index):
        raise ValueError("it holds no labelled image")
    return Predictions(
        labels[index].astype(np.int64), student[index], None if teacher is None else teacher[index], index
    )


def _read_similarity(file: Path) -> Similarity:
    arrays = _load(file)
    levels = [[str(name) for name in arrays[key]] for key in ("student_levels", "teacher_levels")]
    cka = arrays["cka"].astype(np.float64)
    if cka.shape != (len(levels[0]), len(levels[1])) or not cka.size:
        raise ValueError(f"cka is {cka.shape}, but there are {len(levels[0])} and {len(levels[1])} levels")
    return Similarity(cka, levels[0], levels[1])


def _read_samples(file: Path) -> Samples:
    arrays = _load(file)
    images, index = arrays["images"], arrays["index"]
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or len(index) != len(images):
        raise ValueError(f"expected 8-bit images (M, H, W, 3) and index (M,), got {images.shape} and {index.shape}")
    return Samples(images, index.astype(np.int64))
