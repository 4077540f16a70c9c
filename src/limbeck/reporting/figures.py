"""Figures of what the finished models say: calibration, confusions, classes, similarity.

Text from a run (class and level names) is escaped by `label`, since plotly reads some HTML in labels.
"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from limbeck.reporting.calibration import Reliability
from limbeck.reporting.figure_style import CONTROL, GRID, INK, RULE, STUDENT, TEACHER, axis_title, blank, label
from limbeck.reporting.run_reader import Similarity

BLUES = [[0.0, "#ffffff"], [0.25, "#e0ecf8"], [0.5, "#b5d2ee"], [0.75, "#7fb0e0"], [0.85, "#3b79b8"], [1.0, "#1a4f8a"]]


def reliability_diagram(diagram: Reliability, colour: str) -> go.Figure:
    """Accuracy against confidence per bin, with the share of images in each bin below."""
    figure = blank(None, "accuracy")
    centres = (diagram.edges[:-1] + diagram.edges[1:]) / 2
    width = float(diagram.edges[1] - diagram.edges[0])
    share = diagram.counts / max(1, int(diagram.counts.sum()))
    hover = [
        f"confidence {confidence:.3f}<br>accuracy {accuracy:.3f}<br>{count} images"
        for confidence, accuracy, count in zip(diagram.confidence, diagram.accuracy, diagram.counts, strict=True)
    ]
    figure.add_bar(
        x=centres, y=diagram.accuracy, width=width * 0.94, marker={"color": colour, "opacity": 0.85}, hovertext=hover,
        hoverinfo="text", name="accuracy",
    )  # fmt: skip
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"color": INK, "width": 1, "dash": "dash"},
        hoverinfo="skip",
        name="ideal",
    )
    figure.add_bar(
        x=centres, y=share, width=width * 0.94, marker={"color": CONTROL, "opacity": 0.7}, yaxis="y2", hovertext=hover,
        hoverinfo="text", name="images",
    )  # fmt: skip
    figure.update_layout(
        showlegend=False,
        barmode="overlay",
        hovermode="closest",
        xaxis={"range": [0, 1], "anchor": "y2", "title": axis_title("confidence"), "tickformat": ".1f"},
        yaxis={"range": [0, 1], "domain": [0.3, 1], "tickformat": ".1f"},
        yaxis2={
            "domain": [0, 0.2], "title": axis_title("images"), "tickformat": ".0%", "nticks": 3, "gridcolor": GRID,
            "rangemode": "tozero", "automargin": True, "fixedrange": True,
        },
    )  # fmt: skip
    return figure


def confusion_heatmap(
    counts: NDArray[np.integer], rows: Sequence[str], columns: Sequence[str], totals: NDArray[np.integer]
) -> go.Figure:
    """Counts of images by true class (rows) and answer (columns), coloured by the share of the row.

    Args:
        counts: (R, C).
        rows, columns: names of the true classes and of the answers.
        totals: (R,) images of each true class.
    """
    figure = blank("answer", "truth")
    share = counts / np.maximum(totals, 1)[:, None]
    hover = [
        [
            f"truth {label(row)}<br>answer {label(column)}<br>{counts[i, j]} of {totals[i]} images ({share[i, j]:.1%})"
            for j, column in enumerate(columns)
        ]
        for i, row in enumerate(rows)
    ]
    _heat(figure, share, rows, columns, hover, [[f"{n}" if n else "" for n in line] for line in counts.tolist()])
    return figure


def cka_heatmap(similarity: Similarity, pairs: Sequence[tuple[str, str]]) -> go.Figure:
    """CKA of every student level (rows) with every teacher level (columns); rings mark the pairs that a loss joins."""
    figure = blank("teacher level", "student level")
    cka, rows, columns = similarity.cka, similarity.student_levels, similarity.teacher_levels
    hover = [
        [f"student {label(row)}<br>teacher {label(column)}<br>CKA {cka[i, j]:.3f}" for j, column in enumerate(columns)]
        for i, row in enumerate(rows)
    ]
    texts = [["" if not np.isfinite(v) else f"{v:.2f}" for v in line] for line in cka] if max(cka.shape) <= 14 else None
    _heat(figure, cka, rows, columns, hover, texts)
    joined = {(s, t) for s, t in pairs if s in rows and t in columns}
    for s, t in sorted(joined):
        i, j = rows.index(s), columns.index(t)
        figure.add_shape(
            type="rect", x0=j - 0.46, x1=j + 0.46, y0=i - 0.46, y1=i + 0.46, line={"color": TEACHER, "width": 2.5}
        )
    return figure


def class_scores(
    names: Sequence[str],
    student: NDArray[np.float64],
    teacher: NDArray[np.float64] | None,
    counts: NDArray[np.integer],
    *,
    score: str,
    counted: str,
) -> go.Figure:
    """A score of each class, student beside teacher: a row a class for up to 40 classes, a point a class beyond.

    Args:
        names: of the K classes.
        student: (K,), 0 to 1.
        teacher: (K,), or None without one.
        counts: (K,) of what was scored; classes without any are left out.
        score: its name, such as accuracy.
        counted: what the counts are of, such as images.
    """
    present = np.flatnonzero(counts > 0)
    order = present[np.argsort(student[present], kind="stable")]
    hover = [
        f"{label(names[c], 40)}<br>student {student[c]:.1%}"
        + ("" if teacher is None else f"<br>teacher {teacher[c]:.1%}")
        + f"<br>{counts[c]} {counted}"
        for c in order
    ]
    if len(order) <= 40:
        return _class_rows(
            [names[c] for c in order], student[order], None if teacher is None else teacher[order], hover, score
        )
    if teacher is None:
        figure = blank("classes, worst first", score)
        figure.add_bar(
            x=np.arange(len(order)), y=student[order], marker={"color": STUDENT}, hovertext=hover, hoverinfo="text"
        )
        figure.update_xaxes(showticklabels=False)
        figure.update_yaxes(tickformat=".0%", range=[0, 1])
        figure.update_layout(bargap=0.15, hovermode="closest", showlegend=False)
        return figure
    figure = blank(f"teacher's {score}", f"student's {score}")
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "width": 1, "dash": "dash"}, hoverinfo="skip"
    )
    figure.add_scatter(
        x=teacher[order], y=student[order], mode="markers", hovertext=hover, hoverinfo="text",
        marker={"color": STUDENT, "size": 9, "opacity": 0.55},
    )  # fmt: skip
    lowest = float(np.nanmin([student[order], teacher[order]]))
    margin = 0.05 * (1 - lowest) + 0.01
    span = [lowest - margin, 1 + margin]
    figure.update_xaxes(tickformat=".0%", range=span)
    figure.update_yaxes(tickformat=".0%", range=span)
    figure.update_layout(showlegend=False, hovermode="closest")
    return figure


def _heat(
    figure: go.Figure,
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    hover: list[list[str]],
    texts: list[list[str]] | None,
) -> None:
    figure.add_heatmap(
        z=values, zmin=0, zmax=1, colorscale=BLUES, xgap=1, ygap=1, showscale=False, hovertext=hover, hoverinfo="text",
        text=texts, texttemplate="%{text}" if texts else None, textfont={"size": 11},
    )  # fmt: skip
    longest = max(len(column) for column in columns)
    angle = 0 if longest <= 4 or longest * len(columns) <= 40 else -45
    # Numbers as positions, since two classes may carry the same name.
    figure.update_xaxes(
        tickvals=list(range(len(columns))),
        ticktext=[label(c) for c in columns],
        showgrid=False,
        tickangle=angle,
        ticks="",
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[label(r) for r in rows],
        showgrid=False,
        autorange="reversed",
        ticks="",
    )
    figure.update_layout(hovermode="closest", showlegend=False)


def _class_rows(
    names: Sequence[str],
    student: NDArray[np.float64],
    teacher: NDArray[np.float64] | None,
    hover: list[str],
    score: str,
) -> go.Figure:
    figure = blank(score, None)
    place = np.arange(len(names))
    if teacher is not None:
        joined = np.stack([student, teacher, np.full(len(names), np.nan)], axis=1).ravel()
        figure.add_scatter(
            x=joined,
            y=np.repeat(place, 3),
            mode="lines",
            line={"color": RULE, "width": 3},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=teacher, y=place, mode="markers", name="teacher", hovertext=hover, hoverinfo="text",
            marker={"color": TEACHER, "size": 10, "symbol": "diamond"},
        )  # fmt: skip
    figure.add_scatter(
        x=student, y=place, mode="markers", name=score if teacher is None else "student", hovertext=hover,
        hoverinfo="text", marker={"color": STUDENT, "size": 10},
    )  # fmt: skip
    figure.update_xaxes(tickformat=".0%")
    figure.update_yaxes(
        tickvals=place, ticktext=[label(name) for name in names], autorange="reversed", ticks="", range=None
    )
    figure.update_layout(hovermode="closest", showlegend=teacher is not None)
    return figure
