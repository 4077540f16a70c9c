"""What the page of a classification run says."""

from collections.abc import Sequence

from limbeck.reporting.blocks import PageContent
from limbeck.reporting.controls import gather_controls
from limbeck.reporting.headline import write_headline
from limbeck.reporting.run_reader import RunRecord
from limbeck.reporting.sections import all_sections, headline_cards, predictions_accuracy
from limbeck.reporting.training_sections import training_warnings
from limbeck.reporting.wording import percent


def classification_page(run: RunRecord, control_runs: Sequence[RunRecord]) -> PageContent:
    """Headline, sections and warnings of a run that learned to name whole images.

    Raises:
        UserError: a control was distilled or learned another task.
    """
    controls = gather_controls(run, control_runs, lambda record: record.accuracy, "accuracy")
    warnings = [] if controls is None else list(controls.warnings)
    if controls is None and control_runs:
        warnings.append("None of the given controls has an accuracy yet.")
    warnings += training_warnings(run)
    if run.predictions is not None and run.accuracy is not None:
        counted = predictions_accuracy(run.predictions)
        if abs(counted - run.accuracy) > 0.005:
            warnings.append(
                f"predictions.npz gives the student {percent(counted)}, the headline {percent(run.accuracy)}: the two "
                "are not of the same weights, so calibration, confusions and samples describe other weights."
            )
    return PageContent(
        write_headline(run, controls, control_runs),
        headline_cards(run, controls),
        all_sections(run, controls),
        warnings,
    )
