"""Figures of a detection run: AP over the run, precision-recall curves, mistakes by kind."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from limbeck.reporting.controls import Controls
from limbeck.reporting.curves import as_shares, reference_lines, series
from limbeck.reporting.detection.score_file import StoredScores
from limbeck.reporting.drawing import class_colour
from limbeck.reporting.figure_style import CONTROL, OTHER, STUDENT, TEACHER, blank, label, line
from limbeck.reporting.run_reader import Record, number

MOST_CLASSES = 10


def ap_curve(val: Sequence[Record], teacher: float | None, controls: Controls | None) -> go.Figure:
    """Box AP and AP50 and mask AP over optimiser steps, with the teacher's and the control's AP as reference lines."""
    figure = blank("optimiser step", "validation AP")
    epochs = [number(record.get("epoch")) for record in val]
    hover = [f"epoch {epoch:g}" if epoch is not None else "" for epoch in epochs]
    x, _ = series(val, "ap")
    for key, name, colour, dash in (
        ("ap", "AP" if teacher is None else "student AP", STUDENT, "solid"),
        ("mask_ap", "mask AP", OTHER, "solid"),
        ("ap50", "AP50", STUDENT, "dashdot"),
        ("mask_ap50", "mask AP50", OTHER, "dashdot"),
        ("raw_ap", "AP, raw weights", CONTROL, "dot"),
    ):
        y = series(val, key)[1]
        if np.isfinite(y).any():
            line(figure, x, y, name, colour, dash=dash, text=hover)
    reference_lines(figure, x, teacher, controls)
    as_shares(figure)
    return figure


def mean_precision_recall(student: StoredScores, teacher: StoredScores | None) -> go.Figure:
    """Precision over recall at IoU 0.50, averaged over the classes that have objects."""
    figure = blank("recall", "precision")
    for scores, name, colour in ((student, "student", STUDENT), (teacher, "teacher", TEACHER)):
        if scores is not None:
            mean = scores.precision[scores.objects > 0].mean(axis=0)
            line(figure, scores.recall_points, mean, "precision" if teacher is None else name, colour)
    return _unit_square(figure, legend=teacher is not None)


def class_precision_recall(names: Sequence[str], scores: StoredScores) -> go.Figure:
    """Precision over recall at IoU 0.50 of the `MOST_CLASSES` classes with most objects."""
    figure = blank("recall", "precision")
    for place, label_number in enumerate(largest_classes(scores.objects, MOST_CLASSES)):
        precision, threshold = scores.precision[label_number], scores.thresholds[label_number]
        reached = precision > 0
        red, green, blue = class_colour(int(label_number) if len(names) <= MOST_CLASSES else place)
        figure.add_scatter(
            x=scores.recall_points[reached], y=precision[reached], name=label(names[label_number]), mode="lines",
            line={"color": f"rgb({red},{green},{blue})", "width": 2}, customdata=threshold[reached],
            hovertemplate="recall %{x:.2f}, precision %{y:.3f}, score %{customdata:.2f}",
        )  # fmt: skip
    figure.update_layout(hovermode="closest")
    return _unit_square(figure, legend=True)


def largest_classes(objects: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """The classes that have objects, those with most first, at most `most`."""
    order = np.argsort(-objects, kind="stable")
    chosen: NDArray[np.intp] = order[objects[order] > 0][:most]
    return chosen


def mistake_bars(kinds: Sequence[str], student: Sequence[int], teacher: Sequence[int] | None, what: str) -> go.Figure:
    """How often each kind of mistake occurs, the student beside its teacher."""
    figure = blank(what, None)
    for name, counts, colour in (("student", student, STUDENT), ("teacher", teacher, TEACHER)):
        if counts is not None:
            figure.add_bar(
                x=list(counts), y=list(kinds), orientation="h", name=name, marker={"color": colour},
                text=[str(count) for count in counts], textposition="auto", textfont={"size": 12}, hovertemplate="%{x}",
            )  # fmt: skip
    figure.update_layout(barmode="group", hovermode="closest", showlegend=teacher is not None, bargap=0.3)
    figure.update_yaxes(autorange="reversed", ticks="")
    figure.update_xaxes(rangemode="tozero")
    return figure


def _unit_square(figure: go.Figure, *, legend: bool) -> go.Figure:
    figure.update_xaxes(range=[0, 1], tickformat=".1f")
    figure.update_yaxes(range=[0, 1.02], tickformat=".1f")
    figure.update_layout(showlegend=legend)
    return figure
