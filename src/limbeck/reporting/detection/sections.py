"""What the page of a detection run says, section by section.

A section whose files are missing is left out here; `page` lists what is missing and why.
"""

from collections.abc import Sequence

import numpy as np

from limbeck.reporting.blocks import Plot, Section, Table
from limbeck.reporting.controls import Controls
from limbeck.reporting.detection import figures
from limbeck.reporting.detection.galleries import false_positive_galleries, miss_galleries, side_by_side
from limbeck.reporting.detection.headline import BOX, MASK, compared, control_values, measured
from limbeck.reporting.detection.mistakes import FALSE_KINDS, MISS_KINDS
from limbeck.reporting.detection.score_file import ScoreFile
from limbeck.reporting.detection.stored import StoredDetections
from limbeck.reporting.figures import class_scores
from limbeck.reporting.made_images import made_images
from limbeck.reporting.run_reader import RunRecord
from limbeck.reporting.training_sections import loss_plot, pairs, reference_caption, speed, terms
from limbeck.reporting.training_sections import measured as recorded
from limbeck.reporting.wording import capital, counted, percent
from limbeck.reporting.working import working

MOST_CLASS_ROWS = 40
MOST_SIDE_BY_SIDE = 16  # rows of three pictures, which weigh more than all the rest of the page
NUMBERS = (
    ("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"), ("AP, small objects", "ap_small"),
    ("AP, medium objects", "ap_medium"), ("AP, large objects", "ap_large"), ("AR, 100 detections", "ar100"),
)  # fmt: skip


def all_sections(run: RunRecord, controls: Controls | None, control_runs: Sequence[RunRecord]) -> list[Section]:
    """Every section for which the run has something to show, in reading order."""
    found = [
        working(run),
        _learning(run, controls),
        terms(run),
        _scores(run, control_runs),
        _classes(run),
        _precision_recall(run),
        *_mistakes(run),
        _side_by_side(run),
        made_images(run),
        speed(run),
        pairs(run),
    ]
    return [section for section in found if section is not None]


def _learning(run: RunRecord, controls: Controls | None) -> Section | None:
    plots = [loss_plot(run)]
    if recorded(run.val, "ap") or recorded(run.val, "mask_ap"):
        teacher = measured(run, "teacher", compared(run)[0], "ap")
        caption = f"COCO's AP, on the validation images{reference_caption(teacher, controls)}."
        plots.append(Plot("Validation AP", caption, figures.ap_curve(run.val, teacher, controls)))
    shown = [plot for plot in plots if plot is not None]
    return Section("learning", "Learning curves", plots=shown) if shown else None


def _scores(run: RunRecord, control_runs: Sequence[RunRecord]) -> Section | None:
    columns = []
    for iou, title in ((BOX, "Boxes"), (MASK, "Masks")):
        for who in ("student", "teacher"):
            values = [measured(run, who, iou, name) for _, name in NUMBERS]
            if any(value is not None for value in values):
                columns.append((_heading(run, title, who), [percent(value) for value in values]))
        controls = [control_values(control_runs, iou, name) for _, name in NUMBERS]
        if any(value != "n/a" for value in controls):
            columns.append((f"{title}: control", controls))
    if not columns:
        return None
    rows = [(title, *(values[place] for _, values in columns)) for place, (title, _) in enumerate(NUMBERS)]
    text = (
        "COCO's rules: AP is the mean over IoU 0.50 to 0.95 and over the classes; small objects have less than 32 × 32 "
        "pixels, large ones more than 96 × 96; n/a where there is no object of the kind."
    )
    if run.detections is not None:
        text = f"{counted(len(run.detections.ids), 'image')} with {counted(run.detections.objects, 'object')}. {text}"
    table = Table(("", *(title for title, _ in columns)), rows, tuple(range(1, len(columns) + 1)))
    return Section("scores", "Average precision", [text], table=table)


def _heading(run: RunRecord, title: str, who: str) -> str:
    return f"{title}: {who}" if run.has_teacher else title


def _classes(run: RunRecord) -> Section | None:
    scores = run.scores
    iou = compared(run)[0]
    student = None if scores is None else scores.of("student", iou)
    if scores is None or student is None or not student.objects.any():
        return None
    teacher = scores.of("teacher", iou)
    names, shown = scores.class_names, int((student.objects > 0).sum())
    text = []
    if shown < len(names):
        text.append(f"{len(names) - shown} of {len(names)} classes have no object here and no AP.")
    if teacher is not None:
        gap = (teacher.class_ap - student.class_ap)[student.objects > 0]
        text.append(
            f"The student is worse than its teacher on {int((gap > 0).sum())}, equal on {int((gap == 0).sum())} and "
            f"better on {int((gap < 0).sum())} of {counted(shown, 'class', 'classes')}."
        )
    figure = class_scores(
        names, student.class_ap, None if teacher is None else teacher.class_ap, student.objects,
        score="AP", counted="objects",
    )  # fmt: skip
    many = shown > MOST_CLASS_ROWS
    kind = "Box AP" if iou == BOX else "Mask AP"
    caption = "One point a class." if many and teacher is not None else "Worst class first."
    height = (460 if teacher is not None else 320) if many else 90 + 24 * shown
    plot = Plot(f"{kind} by class", caption, figure, height, wide=True, narrow=many and teacher is not None)
    return Section("classes", "AP by class", text, [plot], _class_table(run, scores, shown))


def _class_table(run: RunRecord, scores: ScoreFile, shown: int) -> Table:
    columns: list[tuple[str, list[str]]] = []
    objects = np.zeros(len(scores.class_names), dtype=np.int64)
    for iou, title in ((BOX, "box"), (MASK, "mask")):
        for who in ("student", "teacher"):
            found = scores.of(who, iou)
            if found is not None:
                objects = found.objects
                whose = f"{who} " if run.has_teacher else ""
                columns.append((capital(f"{whose}{title} AP"), [_or_none(value) for value in found.class_ap]))
                if iou == compared(run)[0]:
                    columns.append((capital(f"{whose}AP50"), [_or_none(value) for value in found.class_ap50]))
    rows = [
        (scores.class_names[label], str(objects[label]), *(values[label] for _, values in columns))
        for label in figures.largest_classes(objects, MOST_CLASS_ROWS)
    ]
    header = ("Class", "Objects", *(title for title, _ in columns))
    caption = (
        "Most frequent classes first"
        if shown <= MOST_CLASS_ROWS
        else (f"The {MOST_CLASS_ROWS} most frequent classes; the others are in detection_scores.json")
    )
    return Table(header, rows, tuple(range(1, len(header))), caption)


def _or_none(value: float) -> str:
    return "n/a" if np.isnan(value) else percent(float(value), 1)


def _precision_recall(run: RunRecord) -> Section | None:
    plots = []
    for iou, what in ((BOX, "boxes"), (MASK, "masks")):
        scores = run.scores
        student = None if scores is None else scores.of("student", iou)
        if scores is None or student is None or not student.objects.any():
            continue
        caption = "The area below the line is AP50."
        mean = figures.mean_precision_recall(student, scores.of("teacher", iou))
        plots.append(Plot(f"Mean over the classes, {what}", caption, mean, 340))
        count = int((student.objects > 0).sum())
        some = "" if count <= figures.MOST_CLASSES else f"The {figures.MOST_CLASSES} most frequent classes of {count}. "
        who = "student, " if run.has_teacher else ""
        caption = f"{some}A line ends where no score reaches more recall; a click on a name hides its line."
        classes = figures.class_precision_recall(scores.class_names, student)
        plots.append(Plot(f"By class, {who}{what}", caption, classes, 340))
    text = (
        "At IoU 0.50: what share of the detections is right, at the score at which that share of the objects is found."
    )
    return Section("curves", "Precision and recall", [text], plots) if plots else None


def _mistakes(run: RunRecord) -> list[Section]:
    stored = run.detections
    if stored is None:
        return []
    false, missed = stored.student.mistakes(stored.truths)
    others = None if stored.teacher is None else stored.teacher.mistakes(stored.truths)
    bars = [
        _bars(
            ("False positives by kind", "Detections that find no object.", "detections"),
            FALSE_KINDS,
            [mistake.kind for mistake in false],
            None if others is None else [mistake.kind for mistake in others[0]],
        ),
        _bars(
            ("Misses by kind", "Objects that no detection finds.", "objects"),
            MISS_KINDS,
            [miss.kind for miss in missed],
            None if others is None else [miss.kind for miss in others[1]],
        ),
    ]
    kinds = (
        "Background: less than 0.1 IoU with any object. Poor overlap: 0.1 to 0.5 with one of its class. Wrong class: 0.5 "
        "or more with one of another class. Duplicate: the object is found by a surer detection. The rest overlaps an "
        "object of another class by 0.1 to 0.5 (the kinds of TIDE, Bolya et al. 2020)."
    )
    sections = [Section("mistakes", "Mistakes", [_threshold(run, stored), kinds], bars)]
    alarms = false_positive_galleries(stored, run.pictures, false)
    if alarms:
        words = "Surest first, among the kept images. Full line: the detection; dashed: the object that explains it."
        sections.append(Section("false-positives", "False positives", [words], galleries=alarms))
    gaps = miss_galleries(stored, run.pictures, missed)
    if gaps:
        words = "Largest first, among the kept images. Dashed: the object; full line: the detection that comes closest."
        sections.append(Section("misses", "Misses", [words], galleries=gaps))
    return sections


def _threshold(run: RunRecord, stored: StoredDetections) -> str:
    parts = []
    for who, model in (("student", stored.student), ("teacher", stored.teacher)):
        if model is not None:
            count, right = model.counts()
            precision = percent(right / count if count else None, 1)
            recall = percent(right / stored.objects if stored.objects else None, 1)
            whose = f" of the {who}" if run.has_teacher else ""
            parts.append(f"{model.threshold:.2f}{whose} (precision {precision}, recall {recall})")
    return f"Counted and drawn are detections from the score on at which F1 at IoU 0.50 is highest: {'; '.join(parts)}."


def _bars(words: tuple[str, str, str], kinds: Sequence[str], student: list[str], teacher: list[str] | None) -> Plot:
    title, caption, what = words
    others = None if teacher is None else [teacher.count(kind) for kind in kinds]
    figure = figures.mistake_bars(kinds, [student.count(kind) for kind in kinds], others, what)
    return Plot(title, caption, figure, 120 + 44 * len(kinds))


def _side_by_side(run: RunRecord) -> Section | None:
    stored = run.detections
    if stored is None or not run.pictures:
        return None
    shown = run.pictures[:MOST_SIDE_BY_SIDE]
    words = "The same images as they are annotated and as the models see them; each class has one colour throughout."
    return Section("pictures", "Side by side", [words], galleries=[side_by_side(stored, picture) for picture in shown])
