"""What all of the page's figures share: colours, axes, lines, and names that are safe to show."""

import html
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

STUDENT, TEACHER, CONTROL, OTHER = "#1f5fa8", "#b4540a", "#6b7280", "#2f8f5b"
INK, RULE, GRID = "#1b1f24", "#d0d7de", "#eaeef2"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

MARKED = 60


def blank(x: str | None, y: str | None) -> go.Figure:
    """A figure with named axes and nothing on them."""
    axis: dict[str, Any] = {
        "gridcolor": GRID, "linecolor": RULE, "zeroline": False, "automargin": True, "ticks": "outside",
        "tickcolor": RULE, "ticklen": 4, "fixedrange": True,
    }  # fmt: skip
    return go.Figure(
        layout={
            "template": "none",
            "font": {"family": FONT, "size": 13, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "#ffffff",
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "hovermode": "x unified",
            "showlegend": True,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
            "xaxis": {**axis, "title": axis_title(x)} if x else axis,
            "yaxis": {**axis, "title": axis_title(y)} if y else axis,
        }
    )


def line(
    figure: go.Figure,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    name: str,
    colour: str,
    *,
    dash: str = "solid",
    text: list[str] | None = None,
) -> None:
    """Add one line, with its legend entry; NaNs leave gaps. A short solid line shows its points."""
    mode = "lines+markers" if dash == "solid" and len(x) <= MARKED else "lines"
    figure.add_scatter(
        x=x, y=y, name=name, mode=mode, marker={"size": 5}, text=text,
        line={"color": colour, "width": 2, "dash": dash}, hovertemplate="%{y:.4g}" + (" (%{text})" if text else ""),
    )  # fmt: skip


def axis_title(text: str) -> dict[str, Any]:
    """An axis title in the size of the other text."""
    return {"text": text, "standoff": 8, "font": {"size": 13}}


def label(text: str, longest: int = 22) -> str:
    """A name as plotly may show it: shortened in the middle and escaped."""
    if len(text) > longest:
        text = f"{text[: longest - longest // 2]}…{text[-(longest // 2 - 1) :]}"
    return html.escape(text)
