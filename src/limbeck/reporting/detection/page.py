"""What the page of a detection run says."""

from collections.abc import Sequence
from functools import partial

from limbeck.reporting.blocks import PageContent
from limbeck.reporting.controls import Controls, gather_controls
from limbeck.reporting.detection.headline import WORDS, compared, headline_cards, student_ap, write_headline
from limbeck.reporting.detection.sections import all_sections
from limbeck.reporting.run_reader import RunRecord, number, within
from limbeck.reporting.training_sections import training_warnings
from limbeck.reporting.wording import percent


def detection_page(run: RunRecord, control_runs: Sequence[RunRecord]) -> PageContent:
    """Headline, sections and warnings of a run that learned to find objects.

    Raises:
        UserError: a control was distilled or learned another task.
    """
    controls: dict[str, Controls | None] = {}
    for iou in compared(run):
        controls[iou] = gather_controls(run, control_runs, partial(student_ap, iou=iou), WORDS[iou])
    main = next(iter(controls))
    given = controls[main]
    warnings = [] if given is None else list(given.warnings)
    if given is None and control_runs:
        warnings.append(f"None of the given controls has a {WORDS[main]} yet.")
    warnings += training_warnings(run)
    warnings += _other_weights(run, main)
    return PageContent(
        write_headline(run, main, given),
        headline_cards(run, controls),
        all_sections(run, given, control_runs),
        warnings,
    )


def _other_weights(run: RunRecord, iou: str) -> list[str]:
    scores = None if run.scores is None else run.scores.of("student", iou)
    stored = None if scores is None else number(scores.summary.get("ap"))
    told = number(within(run.summary, "scores", "student", iou, "ap"))
    if stored is None or told is None or abs(stored - told) <= 1e-4:
        return []
    return [
        f"detection_scores.json gives the student {percent(stored)} {WORDS[iou]}, the headline {percent(told)}: the two "
        "are not of the same weights, so curves and mistakes describe other weights."
    ]
