"""Figures of what happened during training: every one runs over optimiser steps, but for the bar of time shares."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from limbeck.reporting.controls import Controls
from limbeck.reporting.figure_style import CONTROL, OTHER, STUDENT, TEACHER, blank, label, line
from limbeck.reporting.run_reader import Record, number

TERMS = ("#57606a", "#1f5fa8", "#2f8f5b", "#8250a8", "#c2410c", "#0e7490", "#a16207")
MOST_POINTS = 1200

# Before the names of the parts that a detector reports of its own loss.
OWN_TERM = "task/"


def loss_curve(train: Sequence[Record]) -> go.Figure:
    """Total and supervised training loss over optimiser steps."""
    figure = blank("optimiser step", "training loss")
    total, task = series(train, "loss/total"), series(train, "loss/task")
    if np.isfinite(task[1]).any() and not np.array_equal(task[1], total[1], equal_nan=True):
        line(figure, *thin(*task), "supervised loss", CONTROL)
    line(figure, *thin(*total), "total loss", STUDENT)
    return figure


def accuracy_curve(val: Sequence[Record], teacher: float | None, controls: Controls | None) -> go.Figure:
    """Validation accuracy over optimiser steps, with the teacher and the control as reference lines."""
    figure = blank("optimiser step", "validation accuracy")
    x, y = series(val, "accuracy")
    name = "accuracy" if teacher is None else "student"
    epochs = [number(record.get("epoch")) for record in val]
    hover = [f"epoch {epoch:g}" if epoch is not None else "" for epoch in epochs]
    line(figure, x, y, name, STUDENT, text=hover)
    # A run that averages its weights measures the average as `accuracy` and the raw weights beside it.
    for key, weights in (("raw_accuracy", "raw weights"), ("ema_accuracy", "averaged weights")):
        other = series(val, key)[1]
        if np.isfinite(other).any():
            line(figure, x, other, weights, OTHER, dash="dot")
    reference_lines(figure, x, teacher, controls)
    as_shares(figure)
    return figure


def agreement_curve(val: Sequence[Record]) -> go.Figure:
    """Share of validation images on which student and teacher answer alike, over optimiser steps."""
    figure = blank("optimiser step", "same answer as the teacher")
    x, y = series(val, "agreement")
    line(figure, x, y, "agreement", STUDENT)
    as_shares(figure)
    figure.update_layout(showlegend=False)
    return figure


def share_curve(train: Sequence[Record]) -> go.Figure:
    """What share of the total each weighted term makes up, over optimiser steps."""
    figure = blank("optimiser step", "share of the total loss")
    names = term_names(train)
    parts = []
    for name in names:
        x, value = series(train, f"loss/{name}")
        weight = series(train, f"weight/{name}")[1]
        parts.append(thin(x, np.abs(value * np.where(np.isfinite(weight), weight, 1.0)), 150))
    whole = np.nansum([part for _, part in parts], axis=0)
    for place, (name, (x, part)) in enumerate(zip(names, parts, strict=True)):
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.nan_to_num(part / whole)
        colour = TERMS[place % len(TERMS)]
        figure.add_scatter(
            x=x, y=share, name=label(_term(name)), mode="lines", line={"width": 0.8, "color": colour},
            stackgroup="terms", fillcolor=_faded(colour), hovertemplate="%{y:.1%}",
        )  # fmt: skip
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    return figure


def term_curve(train: Sequence[Record]) -> go.Figure:
    """Each unweighted term over optimiser steps, on a logarithmic axis."""
    figure = blank("optimiser step", "unweighted term")
    for place, name in enumerate(term_names(train)):
        line(figure, *thin(*series(train, f"loss/{name}")), label(_term(name)), TERMS[place % len(TERMS)])
    return _logarithmic(figure)


def own_term_curve(train: Sequence[Record]) -> go.Figure:
    """What the supervised loss is made of, over optimiser steps, on a logarithmic axis."""
    figure = blank("optimiser step", "part of the supervised loss")
    for place, name in enumerate(own_term_names(train)):
        line(figure, *thin(*series(train, f"loss/{OWN_TERM}{name}")), label(name), TERMS[place % len(TERMS)])
    return _logarithmic(figure)


def gradient_curve(gradients: Sequence[Record]) -> go.Figure:
    """The norm of each term's gradient over optimiser steps, on a logarithmic axis unless one of them is 0."""
    figure = blank("optimiser step", "gradient norm")
    for place, name in enumerate(gradient_terms(gradients)):
        x, y = series(gradients, name)
        line(figure, *thin(x, y), label(_term(name)), TERMS[place % len(TERMS)])
    return _logarithmic(figure)


def cosine_curve(gradients: Sequence[Record]) -> go.Figure:
    """The cosine between the gradients of each two terms over optimiser steps."""
    figure = blank("optimiser step", "cosine of two gradients")
    for place, (a, b) in enumerate(cosine_pairs(gradients)):
        x, y = series(gradients, f"cosine/{a}|{b}")
        line(figure, *thin(x, y), label(f"{_term(a)}, {_term(b)}", 40), TERMS[(place + 1) % len(TERMS)])
    figure.update_yaxes(range=[-1.05, 1.05], tickvals=[-1, -0.5, 0, 0.5, 1])
    figure.update_layout(showlegend=True)
    return figure


def is_logarithmic(figure: go.Figure) -> bool:
    """Whether the vertical axis of a figure is."""
    return bool(figure.layout.yaxis.type == "log")


def gradient_terms(gradients: Sequence[Record]) -> list[str]:
    """The terms whose gradients were measured, the supervised one first; what is derived from them has a / in its name."""
    keys = dict.fromkeys(key for record in gradients for key in record if "/" not in key)
    return sorted((key for key in keys if key not in ("kind", "epoch", "step")), key=lambda name: name != "task")


def cosine_pairs(gradients: Sequence[Record]) -> list[tuple[str, str]]:
    """The pairs of terms between whose gradients the angle was measured."""
    keys = dict.fromkeys(key for record in gradients for key in record if key.startswith("cosine/"))
    return [(a, b) for a, _, b in (key.removeprefix("cosine/").partition("|") for key in keys)]


def throughput_curve(train: Sequence[Record]) -> go.Figure:
    """Images per second over optimiser steps."""
    figure = blank("optimiser step", "images per second")
    line(figure, *thin(*series(train, "images_per_second")), "images per second", STUDENT)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=False)
    return figure


def time_bar(shares: dict[str, float]) -> go.Figure:
    """One bar that shows where the time of a step goes; `shares` add up to 1."""
    figure = blank("share of the time", None)
    colours = {"data": CONTROL, "teacher": TEACHER, "student": STUDENT, "other": "#c9d1d9"}
    for name, share in shares.items():
        figure.add_bar(
            x=[share], y=[""], orientation="h", name=label(name), marker={"color": colours.get(name, TERMS[3])},
            text=[f"{share:.0%}" if share >= 0.06 else ""], textposition="inside", insidetextanchor="middle",
            textangle=0, hovertemplate="%{x:.1%}",
        )  # fmt: skip
    figure.update_layout(barmode="stack", hovermode="closest", legend_traceorder="normal", margin_r=28)
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    return figure


def reference_lines(
    figure: go.Figure, x: NDArray[np.float64], teacher: float | None, controls: Controls | None
) -> None:
    """Add the teacher's and the controls' score as level lines over the steps `x`."""
    ends = [float(x.min()), float(x.max())] if len(x) else [0.0, 1.0]
    if ends[0] == ends[1]:
        ends = [ends[0] - 0.5, ends[1] + 0.5]
    if teacher is not None:
        line(figure, np.array(ends), np.array([teacher, teacher]), "teacher", TEACHER, dash="dash")
    if controls is not None:
        if controls.std is not None:
            low, high = controls.mean - controls.std, controls.mean + controls.std
            figure.add_scatter(
                x=[*ends, *ends[::-1]], y=[low, low, high, high], fill="toself", fillcolor="rgba(107,114,128,0.18)",
                line={"width": 0}, hoverinfo="skip", showlegend=False, mode="lines",
            )  # fmt: skip
        line(figure, np.array(ends), np.array([controls.mean] * 2), "control", CONTROL, dash="dot")


def term_names(train: Sequence[Record]) -> list[str]:
    """The loss terms that were logged, the supervised one first."""
    names = dict.fromkeys(key[5:] for record in train for key in record if key.startswith("loss/"))
    terms = (name for name in names if name != "total" and not name.startswith(OWN_TERM))
    return sorted(terms, key=lambda name: name != "task")


def own_term_names(train: Sequence[Record]) -> list[str]:
    """The terms that make up the supervised loss, where it was logged in parts."""
    whole = f"loss/{OWN_TERM}"
    return list(dict.fromkeys(key[len(whole) :] for record in train for key in record if key.startswith(whole)))


def series(records: Sequence[Record], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of one metric, NaN where it was not measured or is not finite."""
    steps = [number(record.get("step"), float(place)) for place, record in enumerate(records)]
    values = [number(record.get(key)) for record in records]
    return np.array(steps, dtype=np.float64), np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def thin(
    x: NDArray[np.float64], y: NDArray[np.float64], most: int = MOST_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `most` points, each the mean of equally many neighbours; NaNs do not spread."""
    if len(x) <= most:
        return x, y
    groups = np.array_split(np.arange(len(x)), most)
    means = [float(y[g][np.isfinite(y[g])].mean()) if np.isfinite(y[g]).any() else np.nan for g in groups]
    return np.array([x[g].mean() for g in groups]), np.array(means)


def _term(name: str) -> str:
    return "supervised" if name == "task" else name


def _logarithmic(figure: go.Figure) -> go.Figure:
    values = [v for trace in figure.data for v in trace.y if np.isfinite(v)]
    if values and min(values) > 0:
        if max(values) / min(values) > 300:
            figure.update_yaxes(type="log", dtick=1, exponentformat="power")
        else:
            figure.update_yaxes(type="log", dtick="D2", tickformat="~g")
    return figure


def as_shares(figure: go.Figure) -> None:
    """Label the vertical axis in per cent."""
    # Without the clip, plotly puts a single point into the middle of a range that reaches below zero.
    figure.update_yaxes(
        tickformat=".0%" if _spread(figure) > 0.05 else ".1%", autorangeoptions={"clipmin": 0, "clipmax": 1.02}
    )


def _spread(figure: go.Figure) -> float:
    values = [v for trace in figure.data for v in trace.y if np.isfinite(v)]
    return max(values) - min(values) if values else 1.0


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.55)"
