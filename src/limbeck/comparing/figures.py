"""Figures of a comparison: methods as rows, scores or differences across.

A method keeps its colour in all figures: the control is grey, `kd` orange, the best six others have colours of their own, and the
rest share a faint grey, named where the pointer is.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from limbeck.comparing.cost import mean_curve
from limbeck.comparing.ranking import Ranking
from limbeck.comparing.statistics import Comparison, Difference, MethodResult
from limbeck.comparing.words import mean_and_spread, signed, span
from limbeck.reporting.figure_style import CONTROL, INK, OTHER, RULE, STUDENT, blank, label

PLAIN = "#b4540a"
COLOURS = ("#1f5fa8", "#2f8f5b", "#8250a8", "#0e7490", "#a16207", "#be185d")
FAINT = "#aeb6bf"
HELPS, HURTS = OTHER, "#b42318"

# Blue gains and orange losses, white at none.
DIVERGING = [[0.0, "#a34708"], [0.25, "#e8a56d"], [0.5, "#ffffff"], [0.75, "#86b3e0"], [1.0, "#1a4f8a"]]

LONGEST = 34


def colours(comparison: Comparison) -> dict[str, str]:
    """A colour for each method."""
    own = iter(COLOURS)
    chosen = {}
    for result in comparison.ranked:
        if result.method == comparison.control:
            chosen[result.method] = CONTROL
        elif result.method == comparison.plain:
            chosen[result.method] = PLAIN
        else:
            chosen[result.method] = next(own, FAINT)
    return chosen


def score_dots(comparison: Comparison) -> go.Figure:
    """Each seed's score as a dot, the mean with its interval as a bar; the teacher as a line."""
    figure = blank(comparison.score_name, None)
    results = _scored(comparison)
    shown = colours(comparison)
    for place, result in enumerate(results):
        colour = shown[result.method]
        scores = [o.score for o in result.finished]
        figure.add_scatter(
            x=scores, y=[place] * len(scores), mode="markers", hoverinfo="text", showlegend=False,
            marker={"color": colour, "size": 7, "opacity": 0.45},
            hovertext=[f"{label(result.method, LONGEST)}, seed {o.seed}<br>{o.score:.2%}" for o in result.finished],
        )  # fmt: skip
        interval = result.over_seeds
        figure.add_scatter(
            x=[result.mean], y=[place], mode="markers", hoverinfo="text", showlegend=False,
            marker={"color": colour, "size": 12, "symbol": "line-ns", "line": {"width": 3, "color": colour}},
            error_x=_bar(interval.mean - interval.low, colour) if interval is not None else None,
            hovertext=[f"{label(result.method, LONGEST)}<br>mean {mean_and_spread(result)}"],
        )  # fmt: skip
    _teacher_line(figure, comparison.teacher_score)
    _method_rows(figure, [r.method for r in results])
    figure.update_xaxes(tickformat=_share_format(figure))
    return figure


def difference_bars(comparison: Comparison, differences: Sequence[tuple[str, Difference]]) -> go.Figure:
    """Paired differences: each seed as a dot, the mean with its interval over seeds, and over images as a thin line."""
    figure = blank(f"points over {label(differences[0][1].reference)}", None)
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    for place, (method, found) in enumerate(differences):
        colour = {"helps": HELPS, "hurts": HURTS}.get(found.verdict, CONTROL)
        images = found.over_images
        if images is not None:
            figure.add_scatter(
                x=[100 * images.low, 100 * images.high], y=[place + 0.24] * 2, mode="lines", hoverinfo="skip",
                line={"color": RULE, "width": 4}, showlegend=False,
            )  # fmt: skip
        figure.add_scatter(
            x=100 * np.array(found.values), y=[place] * len(found.values), mode="markers", hoverinfo="text",
            showlegend=False, marker={"color": colour, "size": 7, "opacity": 0.4},
            hovertext=[
                f"{label(method, LONGEST)}, seed {seed}<br>{signed(value, 2)} points"
                for seed, value in zip(found.seeds, found.values, strict=True)
            ],
        )  # fmt: skip
        interval = found.over_seeds
        words = [f"{label(method, LONGEST)}: {found.verdict}", f"{signed(found.mean, 2)} points"]
        words += [f"over seeds {span(interval, 2)}"] if interval is not None else []
        words += [f"over images {span(images, 2)}"] if images is not None else []
        figure.add_scatter(
            x=[100 * found.mean], y=[place], mode="markers", hoverinfo="text", hovertext=["<br>".join(words)],
            showlegend=False, error_x=_bar(100 * interval.half_width, colour) if interval is not None else None,
            marker={"color": colour, "size": 12, "symbol": "line-ns", "line": {"width": 3, "color": colour}},
        )  # fmt: skip
    _method_rows(figure, [method for method, _ in differences])
    return figure


def time_curves(comparison: Comparison) -> go.Figure:
    """Score against seconds of training, the mean over the seeds."""
    minutes = max((float(o.curve[-1, 0]) for o in comparison.outcomes if len(o.curve)), default=0.0) > 300
    figure = blank("minutes of training" if minutes else "seconds of training", comparison.score_name)
    shown = colours(comparison)
    # The faint ones first, so that no coloured line lies below one of them.
    for result in sorted(_scored(comparison), key=lambda r: shown[r.method] != FAINT):
        curve = mean_curve(result.finished)
        if not len(curve):
            continue
        colour = shown[result.method]
        figure.add_scatter(
            x=curve[:, 0] / (60 if minutes else 1), y=curve[:, 1], mode="lines", name=label(result.method, LONGEST),
            line={"color": colour, "width": 1.2 if colour == FAINT else 2.2}, showlegend=colour != FAINT,
            hovertemplate=label(result.method, LONGEST) + "<br>%{x:.3g}: %{y:.2%}<extra></extra>",
        )  # fmt: skip
    control = comparison.of(comparison.control).mean if comparison.control is not None else None
    if control is not None:
        figure.add_hline(y=control, line={"color": CONTROL, "width": 1.2, "dash": "dot"})
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(tickformat=".0%")
    figure.update_layout(hovermode="closest")
    return figure


def cost_scatter(comparison: Comparison) -> go.Figure:
    """Score against seconds per epoch, the area of a dot its peak memory."""
    figure = blank("seconds per epoch", comparison.score_name)
    results = [r for r in _scored(comparison) if r.cost.seconds_per_epoch is not None]
    memories = [r.cost.peak_memory or 0.0 for r in results]
    most = max([*memories, 1.0])
    shown = colours(comparison)
    for result, memory in zip(results, memories, strict=True):
        words = [
            label(result.method, LONGEST),
            mean_and_spread(result),
            f"{result.cost.seconds_per_epoch:.3g} s per epoch",
        ]
        words += [f"{memory / 1e9:.3g} GB"] if memory else []
        _dot(
            figure,
            result.cost.seconds_per_epoch,
            result.mean,
            6 + 16 * (memory / most) ** 0.5 if memory else 12,
            words,
            shown,
        )
    _name_dots(figure, [(r.cost.seconds_per_epoch, r.mean, r.method) for r in results], shown)
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(tickformat=_share_format(figure, "y"))
    figure.update_layout(showlegend=False, hovermode="closest")
    return figure


def agreement_scatter(comparison: Comparison) -> go.Figure:
    """Score against the share of images answered as the teacher does."""
    figure = blank("same answer as the teacher", comparison.score_name)
    results = [r for r in _scored(comparison) if r.agreement is not None]
    shown = colours(comparison)
    for result in results:
        words = [label(result.method, LONGEST), mean_and_spread(result), f"agreement {result.agreement:.2%}"]
        _dot(figure, result.agreement, result.mean, 12, words, shown)
    _name_dots(figure, [(r.agreement, r.mean, r.method) for r in results], shown)
    figure.update_xaxes(tickformat=_share_format(figure))
    figure.update_yaxes(tickformat=_share_format(figure, "y"))
    figure.update_layout(showlegend=False, hovermode="closest")
    return figure


def class_heatmap(results: Sequence[MethodResult], names: Sequence[str], order: NDArray[np.integer]) -> go.Figure:
    """Points gained by each class (columns) with each method (rows); a dot marks what noise does not explain."""
    figure = blank(None, None)
    gains = [r.gains for r in results if r.gains is not None]
    values = 100 * np.array([g.gains[order] for g in gains])
    limit = max(float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0, 1.0)
    hover = [
        [
            f"{label(result.method, LONGEST)}<br>{label(names[c], 40)}<br>{signed(float(g.gains[c]), 1)} points"
            + (f" ± {100 * g.errors[c]:.1f} (standard error)" if np.isfinite(g.errors[c]) else "")
            + (f"<br>{int(g.images[c])} images" if g.images is not None else "")
            if np.isfinite(g.gains[c]) else "not measured"
            for c in order
        ]
        for result, g in zip(results, gains, strict=True)
    ]  # fmt: skip
    marks = [["●" if g.stand_out[c] else "" for c in order] for g in gains]
    figure.add_heatmap(
        z=values, zmin=-limit, zmax=limit, colorscale=DIVERGING, xgap=1, ygap=1, hovertext=hover, hoverinfo="text",
        text=marks, texttemplate="%{text}", textfont={"size": 9},
        colorbar={"title": {"text": "points", "font": {"size": 12}}, "thickness": 12, "outlinewidth": 0},
    )  # fmt: skip
    size = 12 if len(order) <= 30 else 10
    figure.update_xaxes(
        tickvals=list(range(len(order))), ticktext=[label(names[c]) for c in order], tickangle=-60, showgrid=False,
        ticks="", tickfont={"size": size},
    )  # fmt: skip
    _method_rows(figure, [r.method for r in results])
    figure.update_yaxes(showgrid=False)
    return figure


def rank_bars(ranking: Ranking) -> go.Figure:
    """Each method's expected rank interval, with its chance of being the best."""
    figure = blank("rank", None)
    for place, (low, high) in enumerate(ranking.ranks.tolist()):
        figure.add_scatter(
            x=[low, high], y=[place, place], mode="lines+markers", line={"color": STUDENT, "width": 5},
            marker={"size": 9, "color": STUDENT}, hoverinfo="text", showlegend=False,
            hovertext=[f"{label(ranking.order[place], LONGEST)}<br>rank {low} to {high}"] * 2,
        )  # fmt: skip
    _method_rows(figure, ranking.order)
    figure.update_xaxes(dtick=1 if len(ranking.order) <= 12 else 2, range=[0.5, len(ranking.order) + 0.5])
    return figure


def row_height(rows: int) -> int:
    """Pixels of a figure with methods as rows."""
    return max(160, 84 + 27 * rows)


def _scored(comparison: Comparison) -> list[MethodResult]:
    return [result for result in comparison.ranked if result.mean is not None]


def _method_rows(figure: go.Figure, methods: Sequence[str]) -> None:
    figure.update_yaxes(
        tickvals=list(range(len(methods))), ticktext=[label(method, LONGEST) for method in methods], ticks="",
        range=[len(methods) - 0.5, -0.5], showgrid=False,
    )  # fmt: skip
    figure.update_layout(hovermode="closest", showlegend=False, margin_t=22)


def _teacher_line(figure: go.Figure, teacher: float | None) -> None:
    """A line at the teacher's score, or an arrow to it where it would squeeze everything else."""
    if teacher is None:
        return
    values = [float(x) for trace in figure.data for x in trace.x]
    far = abs(teacher - np.clip(teacher, min(values), max(values))) > max(values) - min(values)
    if not far:
        figure.add_vline(x=teacher, line={"color": INK, "width": 1.2, "dash": "dash"})
    words = (f"teacher {teacher:.2%} →" if teacher > max(values) else f"← teacher {teacher:.2%}") if far else "teacher"
    side = "right" if teacher > max(values) else "left"
    figure.add_annotation(
        x=(1 if side == "right" else 0) if far else teacher, xref="paper" if far else "x", xanchor=side if far else "center",
        y=1, yref="paper", yanchor="bottom", text=words, showarrow=False, font={"size": 12},
    )  # fmt: skip


def _bar(reach: float, colour: str) -> dict[str, object]:
    return {"type": "constant", "value": reach, "color": colour, "thickness": 2, "width": 5}


def _dot(
    figure: go.Figure, x: float | None, y: float | None, size: float, words: Sequence[str], shown: Mapping[str, str]
) -> None:
    method = next((name for name in shown if label(name, LONGEST) == words[0]), "")
    figure.add_scatter(
        x=[x], y=[y], mode="markers", hoverinfo="text", hovertext=["<br>".join(words)], showlegend=False,
        marker={"size": size, "color": shown.get(method, FAINT), "opacity": 0.8, "line": {"width": 1, "color": "#ffffff"}},
    )  # fmt: skip


def _name_dots(
    figure: go.Figure, dots: Sequence[tuple[float | None, float | None, str]], shown: Mapping[str, str]
) -> None:
    """Write the coloured methods' names beside their dots, each where it covers no earlier one."""
    known = [(x, y, method) for x, y, method in dots if x is not None and y is not None]
    width, height = (max(np.ptp([dot[axis] for dot in known]), 1e-9) if known else 1.0 for axis in (0, 1))
    taken: list[tuple[float, float, float, float]] = []
    for x, y, method in known:
        if shown[method] == FAINT:
            continue
        text = label(method, 24)
        # In shares of the figure, by what a letter of this size takes of half a page.
        long, high = 0.02 * len(text), 0.05
        for side, rise in itertools.product(("left", "right"), (0.03, -0.03, 0.09, -0.09)):
            left = x / width - (long if side == "right" else 0)
            box = (left, left + long, y / height + rise - high / 2, y / height + rise + high / 2)
            if not any(box[0] < b[1] and b[0] < box[1] and box[2] < b[3] and b[2] < box[3] for b in taken):
                break
        taken.append(box)
        figure.add_annotation(
            x=x, y=y, text=text, showarrow=False, xanchor=side, yanchor="middle", xshift=13 if side == "left" else -13,
            yshift=300 * rise, font={"size": 12, "color": shown[method]},
        )  # fmt: skip


def _share_format(figure: go.Figure, axis: str = "x") -> str:
    values = [
        float(v)
        for trace in figure.data
        for v in (getattr(trace, axis) if trace[axis] is not None else ())
        if v is not None
    ]
    return ".1%" if values and max(values) - min(values) < 0.1 else ".0%"
