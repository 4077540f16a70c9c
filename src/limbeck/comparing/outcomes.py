"""What became of a cell, read from its folder without ever failing: any file may be missing, cut short or of a run that stopped.

A cell has finished when its summary holds a score. One that has not has failed where its process said so, in failed.txt
or at the end of log.txt, and is waiting otherwise.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.comparing.base import Cell, Outcome, main_score
from limbeck.errors import UserError
from limbeck.reporting.run_reader import RunRecord, number, read_run, within
from limbeck.run import Run

LOG, FAILED = "log.txt", "failed.txt"

# What Limbeck's command says before it gives up, and how Python names an exception on the last line of a traceback.
_SAID = re.compile(r"^limbeck \w+: (?P<reason>.+)$")
_RAISED = re.compile(r"^(?P<reason>(?:[\w.]+\.)?\w*(?:Error|Exception|Exit|Interrupt|Killed)\b(?::.*)?)$")

# A person's stop is no failure: the cell goes on when the comparison does.
_STOPPED = re.compile(r"^(limbeck \w+: [Ss]topped|KeyboardInterrupt|(?:[\w.]+\.)?StoppedByUserError)")

# A longer message loses its middle: the beginning says what was wrong, the end what to do.
LONGEST_MESSAGE = 700

# Seconds per epoch are told from the later measurements where there are this many: the first epoch also compiles.
MEASUREMENTS = 3


def read_outcomes(cells: Sequence[Cell]) -> list[Outcome]:
    """What became of each cell, in their order."""
    return [read_outcome(cell) for cell in cells]


def read_outcome(cell: Cell) -> Outcome:
    """What became of a cell; never raises for what its folder holds or lacks."""
    try:
        run = read_run(cell.folder)
    except (UserError, OSError, ValueError, zlib.error):
        score = main_score(Run(cell.folder).summary)
        return _unfinished(cell, None) if score is None else _outcome(cell, None, "finished", score=score)
    score, teacher = _scores(run)
    if not run.summary:
        return _unfinished(cell, run)
    if score is None:
        return _outcome(cell, run, "failed", why_no_score(run.summary))
    answered = run.predictions if run.task == "classification" else None
    return _outcome(
        cell,
        run,
        "finished",
        score=score,
        agreement=run.agreement if run.task == "classification" else None,
        right=answered.student_top == answered.labels if answered is not None else None,
        labels=answered.labels if answered is not None else None,
        class_scores=_class_scores(run),
        teacher_score=teacher,
    )


def why_no_score(summary: Mapping[str, Any]) -> str:
    """Why a run that has ended has no score, in a sentence."""
    detection = summary.get("task") == "detection"
    value = within(dict(summary), *(("scores", "student", "bbox", "ap") if detection else ("accuracy", "last")))
    if isinstance(value, float):
        return f"Its score is {value}, which is no finite number. Look into its log.txt, and try a smaller --lr."
    return "It ended without a score: there were no labelled validation images to measure on."


def last_error(log: str) -> str | None:
    """The sentence with which a log ends badly; None where no line of it names an error, or where a person stopped the run.

    What the command itself said last counts before any exception: those of its helpers may come after it.
    """
    lines = [line.strip() for line in reversed(log.splitlines())]
    for pattern in (_SAID, _RAISED):
        for line in lines:
            if found := pattern.match(line):
                return None if _STOPPED.match(line) else _shortened(found["reason"])
    return None


def _shortened(reason: str) -> str:
    half = (LONGEST_MESSAGE - 3) // 2
    return reason if len(reason) <= LONGEST_MESSAGE else f"{reason[:half].rstrip()} … {reason[-half:].lstrip()}"


def _unfinished(cell: Cell, run: RunRecord | None) -> Outcome:
    said, logged = _text(cell.folder / FAILED), last_error(_text(cell.folder / LOG) or "")
    if said is None and logged is None:
        return _outcome(cell, run, "waiting")
    lines = (said or "").strip().splitlines()
    return _outcome(cell, run, "failed", lines[0] if lines else logged or "It stopped without a word.")


def _outcome(cell: Cell, run: RunRecord | None, state: Any, message: str = "", **measured: Any) -> Outcome:
    known: dict[str, Any] = {}
    if run is not None:
        epochs = number(run.recipe.get("epochs"), cell.options.get("epochs"))
        curve = _curve(run, measured.get("score"), epochs)
        known = {
            "seconds_per_epoch": _seconds_per_epoch(run, epochs),
            "seconds": number(run.summary.get("seconds")),
            "peak_memory": _whole(number(run.summary.get("peak_memory"))),
            "curve": curve,
            "score_name": "AP" if run.task == "detection" else "accuracy",
            "epochs": _whole(epochs),
        }
    return Outcome(cell.method, cell.seed, cell.folder, state, message, **known, **measured)


def _scores(run: RunRecord) -> tuple[float | None, float | None]:
    """The student's score after the last epoch, and the teacher's."""
    if run.task == "detection":
        return main_score(run.summary), number(within(run.summary, "scores", "teacher", "bbox", "ap"))
    return main_score(run.summary), run.teacher_accuracy


def _measured(run: RunRecord) -> NDArray[np.float64]:
    """(M, 3) epoch, seconds of training and score of each measurement that has all three."""
    main = "ap" if run.task == "detection" else "accuracy"
    rows = [[number(record.get(key)) for key in ("epoch", "seconds", main)] for record in run.val]
    whole = [row for row in rows if None not in row]
    return np.array(whole, dtype=np.float64).reshape(-1, 3)


def _curve(run: RunRecord, score: float | None, epochs: float | None) -> NDArray[np.float64]:
    measured = _measured(run)
    curve = measured[:, 1:]
    seconds = number(run.summary.get("training_seconds"))
    # With eval_every, the last epoch may have been measured only after training.
    ended = len(measured) and epochs is not None and measured[-1, 0] < epochs - 1
    if ended and score is not None and seconds is not None and seconds > curve[-1, 0]:
        curve = np.vstack([curve, [seconds, score]])
    return curve


def _seconds_per_epoch(run: RunRecord, epochs: float | None) -> float | None:
    measured = _measured(run)
    if len(measured) >= MEASUREMENTS:
        took = np.diff(measured[:, 1]) / np.maximum(np.diff(measured[:, 0]), 1)
        return float(np.median(took))
    seconds = number(run.summary.get("training_seconds"))
    return seconds / epochs if seconds is not None and epochs else None


def _class_scores(run: RunRecord) -> dict[str, float]:
    """Each class's score in the classes' order; NaN where there is nothing to measure."""
    if run.task == "detection":
        stored = run.scores.of("student", "bbox") if run.scores is not None else None
        if run.scores is None or stored is None:
            return {}
        return dict(zip(_distinct(run.scores.class_names), stored.class_ap.tolist(), strict=True))
    answered = run.predictions
    if answered is None:
        return {}
    total = np.bincount(answered.labels, minlength=answered.num_classes)
    hits = np.bincount(answered.labels[answered.student_top == answered.labels], minlength=answered.num_classes)
    scores = np.where(total > 0, hits / np.maximum(total, 1), np.nan)
    return dict(zip(_distinct(run.class_names), scores.tolist(), strict=True))


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, those of several classes with the class's number."""
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names)]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
