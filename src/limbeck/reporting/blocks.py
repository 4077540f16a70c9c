"""What a page is built of: headings, large numbers, figures, tables and pictures."""

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
class Picture:
    """A picture with what is said about it.

    Attributes:
        source: a data URI.
        title: the first line below it, in strong ink.
        lines: further lines.
    """

    source: str
    title: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Pictures under a heading: as many in a row as fit, or `columns` of them."""

    title: str
    pictures: Sequence[Picture]
    text: str = ""
    columns: int | None = None


@dataclass(frozen=True)
class Remark:
    """Something found: what it is called, when it was seen, what is seen, and what to do; `grave` ones are coloured."""

    title: str
    when: str
    words: str
    remedy: str
    grave: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; `good` is a line that says that something is as it should be."""

    key: str
    title: str
    text: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    table: Table | None = None
    samples: list[ChosenSample] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    good: str = ""
    remarks: list[Remark] = field(default_factory=list)


@dataclass(frozen=True)
class Headline:
    """What the page says first: `sentence` is the verdict, `details` what qualifies it."""

    sentence: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class PageContent:
    """What a page says about a run of some task, but for what every page says."""

    headline: Headline
    cards: list[Card]
    sections: list[Section]
    warnings: list[str]
