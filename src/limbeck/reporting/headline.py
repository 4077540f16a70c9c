"""The result of a classification run in plain words, held against its controls.

A difference from the controls is called clear only when it exceeds what chance explains: with two or more controls the
chance of the seeds (`controls`); with one, for which that is unknown, only the chance of the images: 1.96 standard
errors of the mean paired difference where both runs measured the same images, of two independent shares otherwise.
"""

import math
from collections.abc import Sequence

import numpy as np

from limbeck.reporting.blocks import Headline
from limbeck.reporting.controls import NORMAL, Controls
from limbeck.reporting.run_reader import RunRecord
from limbeck.reporting.wording import percent, points


def write_headline(run: RunRecord, controls: Controls | None, control_runs: Sequence[RunRecord]) -> Headline:
    """The verdict in plain words.

    Args:
        run: the run.
        controls: what was gathered from `control_runs`, by accuracy.
        control_runs: the records behind `controls`.
    """
    accuracy, teacher = run.accuracy, run.teacher_accuracy
    if accuracy is None:
        return Headline("This run has no validation accuracy: it stopped before its first measurement.", ())
    if not run.has_method:
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
    else:
        verdict = controls.verdict(gain, margin)
        sentence = f"{verdict}: the student is right on {percent(accuracy)} of the images, {against}."
    details.insert(0, source)
    room = None if teacher is None else teacher - controls.mean
    if room is not None and room > 0 and gain > 0:
        details.append(f"That is {100 * gain / room:.0f} % of the way from the control to the teacher.")
    if len(controls.values) == 1:
        details.append("One control cannot show how much the seed matters; three seeds of each would.")
    return Headline(sentence, tuple(details))


def _margin(run: RunRecord, controls: Controls, control_runs: Sequence[RunRecord]) -> tuple[float | None, str]:
    margin = controls.seed_margin
    if margin is not None:
        return margin, f"Chance of the seeds alone (95 %, from {len(controls.values)} controls): ± {points(margin)}."
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
