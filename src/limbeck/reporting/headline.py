"""The result of a run in a few numbers and plain words, held against its controls.

A control is the same student trained the same way without distillation (method `none`). Without one, a student's
accuracy says nothing about whether distillation helped, and the words say so. A difference is called clear only when
it exceeds what chance explains:

* two or more controls: the difference from their mean has standard error s √(1 + 1/n), where s is the standard
  deviation of the controls (n - 1 in the denominator) and the run is taken to scatter as they do; Student's t with
  n - 1 degrees of freedom gives the 95 % margin;
* one control: chance of the seeds is unknown, and only that of the images is counted: 1.96 standard errors of the mean
  paired difference where both runs measured the same images, of two independent shares otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.errors import UserError
from limbeck.reporting.run_reader import RunRecord, number

# 97.5 % points of Student's t for 1, 2, ... degrees of freedom; beyond the table the normal point is close enough.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL = 1.96

# Options in which a fair control equals the run.
COMPARED = (
    "data", "epochs", "batch_size", "accumulate", "optimizer", "lr", "weight_decay", "schedule", "label_smoothing",
    "mixup", "cutmix", "crop", "flip", "rand_augment", "color_jitter", "random_erasing", "drop_path", "ema",
    "val_fraction", "max_train_images",
)  # fmt: skip


@dataclass(frozen=True)
class Controls:
    """Runs without distillation.

    Attributes:
        accuracies: of each control that has one, 0 to 1.
        mean: their mean.
        std: their standard deviation (n - 1 in the denominator); None for a single one.
        warnings: what makes the comparison unfair or incomplete.
    """

    accuracies: tuple[float, ...]
    mean: float
    std: float | None
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Mean ± standard deviation in per cent."""
        return percent(self.mean) if self.std is None else f"{100 * self.mean:.2f} ± {100 * self.std:.2f}\u00a0%"


@dataclass(frozen=True)
class Headline:
    """What the page says first: `sentence` is the verdict, `details` what qualifies it."""

    sentence: str
    details: tuple[str, ...]


def gather_controls(run: RunRecord, controls: Sequence[RunRecord]) -> Controls | None:
    """Mean and spread of the controls' last-epoch accuracies, and what makes them unfair.

    Args:
        run: the run they are held against.
        controls: runs of the same student without distillation.

    Returns:
        None when no control has an accuracy.

    Raises:
        UserError: one of them was distilled, so it is no control.
    """
    warnings: list[str] = []
    found: list[float] = []
    for control in controls:
        method = str(control.recipe.get("method", "none")).strip()
        if control.recipe.get("teacher") and method != "none":
            raise UserError(
                f"{control.path} was trained with method {method!r}, so it is no control. A control is the same "
                "student without distillation: run it with --method none and name that run's folder."
            )
        if control.accuracy is None:
            warnings.append(f"Control {control.path.name} has no accuracy yet and was left out.")
            continue
        found.append(control.accuracy)
        warnings += _unfair(run, control)
    if not found:
        return None
    std = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return Controls(tuple(found), float(np.mean(found)), std, tuple(warnings))


def write_headline(run: RunRecord, controls: Controls | None, control_runs: Sequence[RunRecord]) -> Headline:
    """The verdict in plain words.

    Args:
        run: the run.
        controls: from `gather_controls`.
        control_runs: the records behind `controls`.
    """
    accuracy, teacher = run.accuracy, run.teacher_accuracy
    if accuracy is None:
        return Headline("This run has no validation accuracy: it stopped before its first measurement.", ())
    if not run.has_teacher:
        return Headline(f"Trained without a teacher, the network is right on {percent(accuracy)} of the images.", ())
    details = []
    if not run.summary:
        details.append("The run has not ended; this is the last accuracy that it measured.")
    if teacher is not None and accuracy >= teacher:
        details.append(f"The student is {points(accuracy - teacher)} above its teacher ({percent(teacher)}).")
    elif teacher is not None:
        details.append(f"The student is {points(teacher - accuracy)} below its teacher ({percent(teacher)}).")
    if str(run.recipe.get("method", "")).strip() == "none":
        return Headline(
            f"This is a control: the student without distillation is right on {percent(accuracy)} of the images.",
            tuple(details),
        )
    if controls is None:
        details.append("Add a control: run the same with --method none, ideally with several seeds.")
        return Headline(
            f"The student is right on {percent(accuracy)} of the images. Whether distillation helped is unknown: no "
            "control was given.",
            tuple(details),
        )
    gain = accuracy - controls.mean
    margin, source = _margin(run, controls, control_runs)
    direction = "above" if gain >= 0 else "below"
    against = f"{points(abs(gain))} {direction} the control ({controls.text})"
    if margin is None or not run.summary:
        sentence = f"The student is right on {percent(accuracy)} of the images, {against}."
    elif abs(gain) <= margin:
        sentence = f"No clear effect: the student is right on {percent(accuracy)} of the images, {against}."
    else:
        # What the seed does is unknown from a single control, so the words claim less then.
        if len(controls.accuracies) > 1:
            verdict = "Distillation helped" if gain > 0 else "Distillation did harm"
        else:
            verdict = "Better than the one control" if gain > 0 else "Worse than the one control"
        sentence = f"{verdict}: the student is right on {percent(accuracy)} of the images, {against}."
    details.insert(0, source)
    room = None if teacher is None else teacher - controls.mean
    if room is not None and room > 0 and gain > 0:
        details.append(f"That is {100 * gain / room:.0f} % of the way from the control to the teacher.")
    if len(controls.accuracies) == 1:
        details.append("One control cannot show how much the seed matters; three seeds of each would.")
    return Headline(sentence, tuple(details))


def percent(share: float | None, digits: int = 2) -> str:
    """A share as per cent, with a space that does not break; `n/a` for None."""
    return "n/a" if share is None else f"{100 * share:.{digits}f}\u00a0%"


def points(difference: float) -> str:
    """A difference of two shares in percentage points."""
    return f"{100 * difference:.2f} points"


def _margin(run: RunRecord, controls: Controls, control_runs: Sequence[RunRecord]) -> tuple[float | None, str]:
    n = len(controls.accuracies)
    if controls.std is not None:
        t = STUDENT_T[n - 2] if n - 2 < len(STUDENT_T) else NORMAL
        margin = t * controls.std * math.sqrt(1 + 1 / n)
        return margin, f"Chance of the seeds alone (95 %, from {n} controls): ± {points(margin)}."
    control = next(c for c in control_runs if c.accuracy is not None)
    mine, other = run.predictions, control.predictions
    if mine is None or other is None:
        return None, "Without both runs' predictions the chance of the images cannot be told."
    right, baseline = mine.student_top == mine.labels, other.student_top == other.labels
    if np.array_equal(mine.labels, other.labels):
        error = float(np.std(right.astype(float) - baseline.astype(float)) / math.sqrt(len(right)))
        kind = "the same images"
    else:
        error = math.sqrt(float(right.var()) / len(right) + float(baseline.var()) / len(baseline))
        kind = "different images"
    return NORMAL * error, (
        f"Chance of the images alone (95 %, {kind}, {len(right)} of them): ± {points(NORMAL * error)}."
    )


def _unfair(run: RunRecord, control: RunRecord) -> list[str]:
    found = []
    mine = run.recipe.get("student", run.recipe.get("model"))
    other = control.recipe.get("student", control.recipe.get("model"))
    if mine is not None and other is not None and mine != other:
        found.append(f"Control {control.path.name} trained another network: {other}, not {mine}.")
    differing = [
        f"{key} {control.recipe.get(key)!r} instead of {run.recipe.get(key)!r}"
        for key in COMPARED
        if key in run.recipe and key in control.recipe and run.recipe[key] != control.recipe[key]
    ]
    if differing:
        found.append(f"Control {control.path.name} was trained differently: {', '.join(differing)}.")
    if number(run.summary.get("seconds")) is not None and not control.summary:
        found.append(f"Control {control.path.name} has not ended; its last measured accuracy is used.")
    return found
