"""The section "Is it working?": what the run's watcher found, or that it found nothing.

The findings are the run's own, with the thresholds that `limbeck.training.watch` gives; here they are only set out.
"""

from collections.abc import Sequence

from limbeck.reporting.blocks import Remark, Section, Table
from limbeck.reporting.run_reader import Record, RunRecord, number

TITLES = {
    "student_frozen": "The student is frozen",
    "drop_path_with_blocks": "Stochastic depth and block-wise losses",
    "term_dominates": "One term drowns the others",
    "term_vanishes": "A term does nothing",
    "gradients_fight": "Two terms pull against each other",
    "agreement_near_chance": "No agreement with the teacher",
    "agreement_not_rising": "Agreement with the teacher does not rise",
    "loss_not_falling": "The loss does not fall",
    "features_part": "Features become less alike",
    "teacher_normalisation": "The teacher's normalisation is wrong",
    "teacher_colours": "The teacher expects other colours",
    "teacher_implausible": "The teacher does not know these images",
    "classes_shuffled": "The teacher's classes are in another order",
    "balance_at_its_bound": "Chosen shares cannot be kept",
}


def working(run: RunRecord) -> Section | None:
    """What was found, gravest first; None for a run that was not watched."""
    if run.findings is None:
        return None
    ordered = sorted(run.findings, key=lambda found: found.get("severity") != "warning")
    remarks = [
        Remark(
            TITLES.get(str(found.get("name")), str(found.get("name"))),
            _when(found),
            str(found.get("words", "")),
            str(found.get("remedy", "")),
            grave=found.get("severity") == "warning",
        )
        for found in ordered
    ]
    good = "" if any(remark.grave for remark in remarks) else _nothing(run, bool(remarks))
    return Section("working", "Is it working?", table=_similarities(run.watch), remarks=remarks, good=good)


def _when(found: Record) -> str:
    epoch = number(found.get("epoch"))
    return "" if epoch is None else f"first seen in epoch {epoch:g}"


def _nothing(run: RunRecord, noted: bool) -> str:
    watched = ["that parameters and losses move"]
    if run.gradients:
        watched.append("how hard each term pulls")
    if any(key.startswith("cosine/") for record in run.gradients for key in record):
        watched.append("whether terms pull against each other")
    if any("agreement" in record for record in (*run.val, *run.watch)):
        watched.append("whether the student grows like its teacher")
    end = " Worth knowing:" if noted else ""
    return f"Nothing suspicious was seen. Watched: {', '.join(watched)}.{end}"


def _similarities(watch: Sequence[Record]) -> Table | None:
    """CKA of each watched pair of levels after the first, the middle and the last epoch."""
    measured = [record for record in watch if any(key.startswith("cka/") for key in record)]
    keys = dict.fromkeys(key for record in measured for key in record if key.startswith("cka/"))
    if not keys:
        return None
    rows = []
    for key in keys:
        student, _, teacher = key.removeprefix("cka/").partition("|")
        values = [number(record.get(key)) for record in measured]
        rows.append((student, teacher, *("n/a" if value is None else f"{value:.2f}" for value in values)))
    epochs = tuple(f"After epoch {number(record.get('epoch')) or 0:g}" for record in measured)
    return Table(
        ("Student level", "Teacher level", *epochs),
        rows,
        numeric=tuple(range(2, 2 + len(epochs))),
        caption="Similarity of the features (CKA) while the student learned",
    )
