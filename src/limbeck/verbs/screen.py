"""What the verbs say on the terminal: tables and sentences, through rich."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console(highlight=False, emoji=False)


def say(text: str) -> None:
    """One line of plain text."""
    console.print(escape(text), soft_wrap=True)


def notes(lines: Iterable[str]) -> None:
    """Sentences the user should know, each marked."""
    for line in lines:
        console.print(f"[yellow]•[/yellow] {escape(line)}", soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; numbers are right-aligned, None is a dash."""
    rows = [list(row) for row in rows]
    drawn = Table(title=escape(title), title_justify="left", title_style="bold", header_style="bold")
    for position, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[position]) for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*("–" if cell is None else escape(str(cell)) for cell in row))
    console.print(drawn)


def settings(title: str, values: Mapping[str, Any]) -> None:
    """Names and values, two a row."""
    pairs = [(name, _plain(value)) for name, value in values.items()]
    half = -(-len(pairs) // 2)
    rows = [(*pairs[i], *(pairs[half + i] if half + i < len(pairs) else ("", ""))) for i in range(half)]
    table(title, ("option", "value", "option", "value"), rows)


def per_cent(share: float | None) -> str | None:
    """0.7234 as "72.34 %"."""
    return None if share is None else f"{100 * share:.2f} %"


def _is_number(cell: Any) -> bool:
    return (
        cell is None
        or isinstance(cell, int | float)
        or str(cell).rstrip(" %MG×xs").replace(".", "", 1).replace("-", "", 1).isdigit()
    )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value) or "none"
    return "none" if value is None else str(value)
