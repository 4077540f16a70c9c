"""What a page is built of: headings, large numbers, figures, tables and sample images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go

from limbeck.reporting.sample_choice import ChosenSample


@dataclass(frozen=True)
class Plot:
    """A figure with its heading and the sentence below it.

    Attributes:
        height: in pixels.
        wide: it takes the whole width of the page instead of half of it.
        narrow: it is drawn no wider than a matrix looks well.
        least_width: in pixels; on narrower screens the figure scrolls sideways.
    """

    title: str
    caption: str
    figure: go.Figure
    height: int = 320
    wide: bool = False
    narrow: bool = False
    least_width: int = 0

    @property
    def json(self) -> str:
        """Data and layout as JSON that cannot end the script element it stands in."""
        return str(self.figure.to_json()).replace("<", "\\u003c")


@dataclass(frozen=True)
class Table:
    """Rows of text; the columns in `numeric` are set to the right."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numeric: tuple[int, ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """One large number: what it is, the number, and a line below."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    key: str
    title: str
    text: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    table: Table | None = None
    samples: list[ChosenSample] = field(default_factory=list)
