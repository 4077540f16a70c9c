"""Runs without distillation, and whether a run differs from them by more than chance.

A control is the same student trained the same way without distillation (method `none`). Without one, a student's score
says nothing about whether distillation helped. With two or more, the difference from their mean has standard error
s √(1 + 1/n), where s is the standard deviation of the controls (n - 1 in the denominator) and the run is taken to
scatter as they do; Student's t with n - 1 degrees of freedom gives the 95 % margin.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.errors import UserError
from limbeck.reporting.run_reader import RunRecord, number
from limbeck.reporting.wording import percent

# 97.5 % points of Student's t for 1, 2, ... degrees of freedom; beyond the table the normal point is close enough.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL = 1.96

# Options in which a fair control equals the run.
COMPARED = (
    "task", "data", "epochs", "batch_size", "accumulate", "optimizer", "lr", "weight_decay", "schedule",
    "label_smoothing", "mixup", "cutmix", "crop", "flip", "rand_augment", "color_jitter", "random_erasing", "drop_path",
    "ema", "val_fraction", "max_train_images", "backbone", "short_side", "long_side", "scale_jitter",
)  # fmt: skip

Measure = Callable[[RunRecord], float | None]


@dataclass(frozen=True)
class Controls:
    """Runs without distillation.

    Attributes:
        values: the score of each control that has one, 0 to 1.
        mean: their mean.
        std: their standard deviation (n - 1 in the denominator); None for a single one.
        warnings: what makes the comparison unfair or incomplete.
    """

    values: tuple[float, ...]
    mean: float
    std: float | None
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Mean ± standard deviation in per cent."""
        return percent(self.mean) if self.std is None else f"{100 * self.mean:.2f} ± {100 * self.std:.2f}\u00a0%"

    @property
    def seed_margin(self) -> float | None:
        """By how much a run may differ from the mean by chance of the seeds (95 %); None from a single control."""
        if self.std is None:
            return None
        n = len(self.values)
        t = STUDENT_T[n - 2] if n - 2 < len(STUDENT_T) else NORMAL
        return t * self.std * math.sqrt(1 + 1 / n)

    def verdict(self, gain: float, margin: float) -> str:
        """What a difference of `gain` means where chance explains `margin`."""
        if abs(gain) <= margin:
            return "No clear effect"
        # What the seed does is unknown from a single control, so the words claim less then.
        if len(self.values) > 1:
            return "Distillation helped" if gain > 0 else "Distillation did harm"
        return "Better than the one control" if gain > 0 else "Worse than the one control"


def gather_controls(run: RunRecord, controls: Sequence[RunRecord], measure: Measure, name: str) -> Controls | None:
    """Mean and spread of the controls' last-epoch scores, and what makes them unfair.

    Args:
        run: the run they are held against.
        controls: runs of the same student without distillation.
        measure: a run's score, 0 to 1.
        name: of the score, as in "has no accuracy".

    Returns:
        None when no control has a score.

    Raises:
        UserError: one of them was distilled or learned another task, so it is no control.
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
        if control.task != run.task:
            raise UserError(
                f"{control.path} is a run of {control.task}, {run.path} one of {run.task}; a control learns the same "
                "task. Name the folder of a run of the same student without distillation."
            )
        value = measure(control)
        if value is None:
            warnings.append(f"Control {control.path.name} has no {name} yet and was left out.")
            continue
        found.append(value)
        warnings += _unfair(run, control)
    if not found:
        return None
    std = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return Controls(tuple(found), float(np.mean(found)), std, tuple(warnings))


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
        found.append(f"Control {control.path.name} has not ended; its last measured score is used.")
    return found
