"""What the page of a classification run says, section by section: words, figures and tables made from its record.

A section whose files are missing is left out here; `page` lists what is missing and why.
"""

from collections.abc import Sequence

import numpy as np

from limbeck.reporting import curves, figures
from limbeck.reporting.blocks import Card, Plot, Section, Table
from limbeck.reporting.calibration import Reliability, reliability, softmax
from limbeck.reporting.confusion import confusion_rows, most_confused, recall, worst_classes
from limbeck.reporting.controls import Controls
from limbeck.reporting.figure_style import STUDENT, TEACHER
from limbeck.reporting.made_images import made_images
from limbeck.reporting.run_reader import Predictions, RunRecord, number
from limbeck.reporting.sample_choice import choose_samples
from limbeck.reporting.training_sections import (
    control_card,
    loss_plot,
    measured,
    pair_records,
    pairs,
    reference_caption,
    size_cards,
    speed,
    terms,
)
from limbeck.reporting.wording import percent
from limbeck.reporting.working import working

BINS = 15
LARGEST_FULL_MATRIX = 12


def headline_cards(run: RunRecord, controls: Controls | None) -> list[Card]:
    """The large numbers at the top."""
    accuracy = run.summary.get("accuracy")
    best = number(accuracy.get("best")) if isinstance(accuracy, dict) else None
    note = "last epoch" if run.summary else "last measured; the run has not ended"
    if best is not None and isinstance(accuracy, dict):
        epoch = number(accuracy.get("best_epoch"))
        note += f"; best {percent(best)}" + (f" at epoch {epoch:g}" if epoch is not None else "")
    cards = [Card("Student accuracy" if run.has_method else "Accuracy", percent(run.accuracy), note)]
    teacher = run.teacher_accuracy
    if run.has_teacher:
        cards.append(
            Card("Teacher accuracy", percent(teacher), "same images" if teacher is not None else "not recorded")
        )
    if run.has_method:
        cards.append(control_card(controls, "Control accuracy"))
    cards += size_cards(run)
    if run.agreement is not None:
        cards.append(Card("Agreement with teacher", percent(run.agreement), "same top-1 answer"))
    return cards


def all_sections(run: RunRecord, controls: Controls | None) -> list[Section]:
    """Every section for which the run has something to show, in reading order."""
    found = [
        working(run),
        _learning(run, controls),
        terms(run),
        _agreement(run),
        _calibration(run),
        _confusion(run),
        _classes(run),
        _similarity(run),
        _samples(run),
        made_images(run),
        speed(run),
        pairs(run),
    ]
    return [section for section in found if section is not None]


def _learning(run: RunRecord, controls: Controls | None) -> Section | None:
    plots = [loss_plot(run)]
    if measured(run.val, "accuracy"):
        caption = f"Top-1, on the validation images{reference_caption(run.teacher_accuracy, controls)}."
        figure = curves.accuracy_curve(run.val, run.teacher_accuracy, controls)
        plots.append(Plot("Validation accuracy", caption, figure))
    shown = [plot for plot in plots if plot is not None]
    return Section("learning", "Learning curves", plots=shown) if shown else None


def _agreement(run: RunRecord) -> Section | None:
    if not measured(run.val, "agreement"):
        return None
    caption = "Share of the validation images on which both give the same top-1 answer, right or wrong."
    text = []
    p = run.predictions
    if p is not None and p.teacher_top is not None:
        student, teacher = p.student_top == p.labels, p.teacher_top == p.labels
        same = p.student_top == p.teacher_top
        text = [
            f"At the end: both right on {percent(float((student & teacher).mean()), 1)}, only the student right on "
            f"{percent(float((student & ~teacher).mean()), 1)}, only the teacher right on "
            f"{percent(float((~student & teacher).mean()), 1)}, the same mistake on "
            f"{percent(float((same & ~student).mean()), 1)}, different mistakes on "
            f"{percent(float((~same & ~student & ~teacher).mean()), 1)} of {len(p.labels)} images."
        ]
    return Section(
        "agreement",
        "Agreement with the teacher",
        text,
        [Plot("Agreement on the validation images", caption, curves.agreement_curve(run.val), wide=True, height=280)],
    )


def _calibration(run: RunRecord) -> Section | None:
    if run.predictions is None:
        return None
    p = run.predictions
    text = (
        f"The expected calibration error (ECE) sorts the images by confidence into {BINS} bins of equal width and "
        "averages the distance between mean confidence and accuracy over the bins, weighted by their images (Guo et "
        "al. 2017). Bars on the dashed line mean that the confidence can be taken at its word; below it, the model is "
        "too confident."
    )
    plots = []
    who = "Student" if run.has_teacher else "Reliability"
    for name, logits, colour in (
        (who, p.student_logits, STUDENT),
        ("Teacher", p.teacher_logits, TEACHER),
    ):
        if logits is not None:
            diagram = reliability(softmax(logits), p.labels, BINS)
            figure = figures.reliability_diagram(diagram, colour)
            plots.append(Plot(f"{name}: ECE {percent(diagram.error)}", _leaning(diagram), figure, 360, narrow=True))
    return Section("calibration", "Calibration", [text], plots)


def _leaning(diagram: Reliability) -> str:
    filled = diagram.counts > 0
    weights = diagram.counts[filled] / diagram.counts.sum()
    confidence = float((weights * diagram.confidence[filled]).sum())
    accuracy = float((weights * diagram.accuracy[filled]).sum())
    way = "overconfident" if confidence > accuracy else "underconfident"
    gap = abs(confidence - accuracy)
    sentence = f"Mean confidence {percent(confidence)}, accuracy {percent(accuracy)}"
    return f"{sentence}: {way} by {100 * gap:.2f} points." if gap >= 5e-5 else f"{sentence}."


def _confusion(run: RunRecord) -> Section | None:
    if run.predictions is None:
        return None
    p, names = run.predictions, run.class_names
    k, guess = p.num_classes, p.student_top
    images = np.bincount(p.labels, minlength=k)
    if k <= LARGEST_FULL_MATRIX:
        classes = np.arange(k)
        counts, columns = confusion_rows(p.labels, guess, classes)[:, :-1], [names[c] for c in classes]
        title, caption = "All classes", "Rows are the truth, columns the answers; the colour is the share of the row."
    else:
        classes = worst_classes(p.labels, guess, k, LARGEST_FULL_MATRIX)
        counts, columns = confusion_rows(p.labels, guess, classes), [*(names[c] for c in classes), "(any other)"]
        title = f"The {len(classes)} classes of lowest recall"
        caption = f"Worst first, of {k}. Rows are the truth, columns the answers; the colour is the share of the row."
    figure = figures.confusion_heatmap(counts, [names[c] for c in classes], columns, images[classes])
    height = 130 + 34 * max(3, len(classes))
    who = " of the student" if run.has_teacher else ""
    confused = most_confused(p.labels, guess, 12)
    rows = [(names[c.truth], names[c.predicted], str(c.count), percent(c.share, 1)) for c in confused]
    table = Table(("Truth", "Answer", "Images", "Of the class"), rows, (2, 3), "Most frequent mistakes" + who)
    return Section(
        "confusion",
        "Confusions",
        [] if rows else ["There is no mistake on these images."],
        [Plot(title, caption, figure, height, wide=True, narrow=True, least_width=_matrix_width(columns))],
        table if rows else None,
    )


def _matrix_width(columns: Sequence[str]) -> int:
    # Room for a number in each cell, and for the row's label, of about as many letters as a column's.
    return 40 + 8 * min(22, max(len(name) for name in columns)) + (30 * len(columns) if len(columns) <= 14 else 300)


def _classes(run: RunRecord) -> Section | None:
    if run.predictions is None:
        return None
    p = run.predictions
    k = p.num_classes
    images = np.bincount(p.labels, minlength=k)
    student = recall(p.labels, p.student_top, k)
    teacher = None if p.teacher_top is None else recall(p.labels, p.teacher_top, k)
    shown = int((images > 0).sum())
    figure = figures.class_scores(run.class_names, student, teacher, images, score="accuracy", counted="images")
    if shown <= 40:
        height, caption = 90 + 24 * shown, "Worst class first."
    elif teacher is not None:
        height, caption = (
            460,
            f"One point a class ({shown}); below the dashed line the student is worse than its teacher.",
        )
    else:
        height, caption = 320, f"One bar a class ({shown}), worst first."
    text = [] if shown == k else [f"{k - shown} of {k} classes have no validation image and are not shown."]
    if teacher is not None:
        gap = (teacher - student)[images > 0]
        text.append(
            f"The student is worse than its teacher on {int((gap > 0).sum())}, equal on {int((gap == 0).sum())} and "
            f"better on {int((gap < 0).sum())} of {shown} classes."
        )
    plot = Plot("By true class", caption, figure, height, wide=True, narrow=shown > 40 and teacher is not None)
    return Section("classes", "Accuracy by class", text, [plot])


def _similarity(run: RunRecord) -> Section | None:
    if run.similarity is None:
        return None
    # A loss may read a level before its last activation, under a name of its own.
    joined = [
        (str(pair.get("student")).removesuffix(".pre"), str(pair.get("teacher")).removesuffix(".pre"))
        for pair in pair_records(run)
    ]
    rows, columns = run.similarity.student_levels, run.similarity.teacher_levels
    ringed = any(s in rows and t in columns for s, t in joined)
    caption = (
        "Linear centred kernel alignment (Kornblith et al. 2019) of pooled features: 0 unlike, 1 alike up to "
        "rotation and scale." + (" Frames mark the pairs that a loss joins." if ringed else "")
    )
    height = max(240, 120 + min(34, 700 // len(rows)) * len(rows))
    figure = figures.cka_heatmap(run.similarity, joined)
    plot = Plot("Student levels against teacher levels", caption, figure, height, True, True, _matrix_width(columns))
    return Section("similarity", "Similarity of the features", plots=[plot])


def _samples(run: RunRecord) -> Section | None:
    if run.predictions is None or run.samples is None:
        return None
    chosen = choose_samples(run.predictions, run.samples)
    if not chosen:
        return None
    text = "Mistakes and disagreements first, most confident first; the per cent are the models' confidences."
    return Section("samples", "Sample images", [text], samples=chosen)


def predictions_accuracy(predictions: Predictions) -> float:
    """The student's accuracy by predictions.npz, for a check against the summary."""
    return float((predictions.student_top == predictions.labels).mean())
