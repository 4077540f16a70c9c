"""The result of a detection run in numbers and plain words, held against its controls."""

from collections.abc import Sequence

import numpy as np

from limbeck.reporting.blocks import Card, Headline
from limbeck.reporting.controls import Controls
from limbeck.reporting.run_reader import RunRecord, number, within
from limbeck.reporting.training_sections import control_card, size_cards
from limbeck.reporting.wording import capital, duration, percent, points

BOX, MASK = "bbox", "segm"
WORDS = {BOX: "box AP", MASK: "mask AP"}

# What the training's records call the two.
RECORDED = {BOX: "ap", MASK: "mask_ap"}


def compared(run: RunRecord) -> list[str]:
    """What was scored, boxes before masks; boxes where the run does not say."""
    given = within(run.summary, "scores", "student")
    found = [iou for iou in (BOX, MASK) if (isinstance(given, dict) and given.get(iou)) or _stored(run, "student", iou)]
    return found or [BOX]


def measured(run: RunRecord, who: str, iou: str, name: str) -> float | None:
    """One of COCO's seven numbers, 0 to 1: the summary's, or that of detection_scores.json."""
    return number(within(run.summary, "scores", who, iou, name), _stored(run, who, iou).get(name))


def student_ap(run: RunRecord, iou: str) -> float | None:
    """AP after the last epoch, or the last one measured before a stop."""
    return number(measured(run, "student", iou, "ap"), run.last_measured(RECORDED[iou]))


def write_headline(run: RunRecord, iou: str, controls: Controls | None) -> Headline:
    """The verdict in plain words.

    Args:
        run: the run.
        iou: what its AP compares.
        controls: gathered by the same AP.
    """
    ap, teacher, what = student_ap(run, iou), measured(run, "teacher", iou, "ap"), WORDS[iou]
    if ap is None:
        return Headline("This run has no validation AP: it stopped before its first measurement.", ())
    if not run.has_teacher:
        return Headline(f"Trained without a teacher, the detector reaches {percent(ap)} {what}.", ())
    details = []
    if not run.summary:
        details.append("The run has not ended; this is the last AP that it measured.")
    if teacher is not None:
        direction = "above" if ap >= teacher else "below"
        details.append(f"The student is {points(abs(ap - teacher))} {direction} its teacher ({percent(teacher)}).")
    if str(run.recipe.get("method", "")).strip() == "none":
        words = f"This is a control: the student without distillation reaches {percent(ap)} {what}."
        return Headline(words, tuple(details))
    reaches = f"he student reaches {percent(ap)} {what}"
    if controls is None:
        details.append("Add a control: run the same with --method none, ideally with several seeds.")
        words = f"T{reaches}. Whether distillation helped is unknown: no control was given."
        return Headline(words, tuple(details))
    gain, margin = ap - controls.mean, controls.seed_margin
    against = f"{points(abs(gain))} {'above' if gain >= 0 else 'below'} the control ({controls.text})"
    if margin is None:
        details.insert(0, "One control cannot show how much the seed matters; three seeds of each would.")
    else:
        many = len(controls.values)
        details.insert(0, f"Chance of the seeds alone (95 %, from {many} controls): ± {points(margin)}.")
    room = None if teacher is None else teacher - controls.mean
    if room is not None and room > 0 and gain > 0:
        details.append(f"That is {100 * gain / room:.0f} % of the way from the control to the teacher.")
    if margin is None or not run.summary:
        return Headline(f"T{reaches}, {against}.", tuple(details))
    return Headline(f"{controls.verdict(gain, margin)}: t{reaches}, {against}.", tuple(details))


def headline_cards(run: RunRecord, controls: dict[str, Controls | None]) -> list[Card]:
    """The large numbers at the top; `controls` by what they compare."""
    cards: list[Card] = []
    for iou, given in controls.items():
        what = WORDS[iou]
        cards.append(
            Card(
                f"Student {what}" if run.has_teacher else capital(what),
                percent(student_ap(run, iou)),
                "; ".join(text for text in (_rest(run, "student", iou), _when(run, iou, first=not len(cards))) if text),
            )
        )
        if run.has_teacher:
            ap = measured(run, "teacher", iou, "ap")
            cards.append(Card(f"Teacher {what}", percent(ap), _rest(run, "teacher", iou) or "not recorded"))
            cards.append(control_card(given, f"Control {what}"))
    cards += size_cards(run, _image_size(run))
    seconds, training = number(run.summary.get("seconds")), number(run.summary.get("training_seconds"))
    if seconds is not None:
        cards.append(Card("Time", duration(seconds), f"training {duration(training)}" if training is not None else ""))
    return cards


def control_values(controls: Sequence[RunRecord], iou: str, name: str) -> str:
    """Mean ± standard deviation of one number over the controls that have it, in per cent."""
    values = [value for value in (measured(control, "student", iou, name) for control in controls) if value is not None]
    if not values:
        return "n/a"
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Controls(tuple(values), float(np.mean(values)), std).text


def _stored(run: RunRecord, who: str, iou: str) -> dict[str, float | None]:
    scores = None if run.scores is None else run.scores.of(who, iou)
    return {} if scores is None else dict(scores.summary)


def _rest(run: RunRecord, who: str, iou: str) -> str:
    values = [(title, measured(run, who, iou, name)) for title, name in (("AP50", "ap50"), ("AP75", "ap75"))]
    return ", ".join(f"{title} {percent(value)}" for title, value in values if value is not None)


def _when(run: RunRecord, iou: str, *, first: bool) -> str:
    if not run.summary:
        return "last measured; the run has not ended"
    # The best epoch is that of the first AP alone.
    best, epoch = number(within(run.summary, "best", "ap")), number(within(run.summary, "best", "epoch"))
    if best is None or not first:
        return "last epoch"
    return f"last epoch; best {percent(best)}" + (f" at epoch {epoch:g}" if epoch is not None else "")


def _image_size(run: RunRecord) -> str:
    """For which picture the multiply-adds are; runs of earlier versions say only what it was resized to."""
    size = run.summary.get("macs_size", run.summary.get("image_size"))
    if not isinstance(size, list) or len(size) != 2 or None in (number(size[0]), number(size[1])):
        return ""
    return f"at {size[0]:g} × {size[1]:g} pixels"
