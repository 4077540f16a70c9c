"""One self-contained HTML page about a run, made from the files in its folder alone.

plotly's script, the style, the figures' numbers and the images are all inside the page: it needs no network, no server
and no model, and its own content policy forbids it to fetch anything.
"""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from limbeck.files import atomic_write
from limbeck.reporting.blocks import PageContent
from limbeck.reporting.classification_page import classification_page
from limbeck.reporting.detection.page import detection_page
from limbeck.reporting.run_reader import RunRecord, number, read_run
from limbeck.reporting.wording import capital, percent

# Longer lists, such as the names of all validation images, are cut to this many items.
LISTED = 12

PAGES = {"classification": classification_page, "detection": detection_page}


def write_report(run: str | Path, *, controls: Sequence[str | Path] = (), out: str | Path | None = None) -> Path:
    """Write the page a person reads after a run.

    Args:
        run: the run's folder. Files that are missing or cut short are named on the page, with the reason.
        controls: folders of runs of the same student with method `none`; several seeds are shown as mean ± standard
            deviation.
        out: the page's file; None for report.html in the run's folder.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: a folder does not exist.
        UserError: a folder is no run, or a control was distilled or learned another task.
    """
    record = read_run(run)
    control_runs = [read_run(folder) for folder in controls]
    page = render_page(
        record,
        PAGES[record.task](record, control_runs),
        subtitle=_subtitle(record),
        notes=_texts(record.summary.get("notes")),
        recipe=flatten(record.recipe) + flatten(record.provenance, "provenance."),
        class_names=record.class_names,
    )
    path = Path(out) if out is not None else record.path / "report.html"
    with atomic_write(path) as file:
        file.write(page.encode("utf-8"))
    return path


class Subject(Protocol):
    """What a page is about: its name, its folder, and what is missing there, with the reason."""

    @property
    def name(self) -> str:
        """The page's title."""

    @property
    def path(self) -> Path:
        """Its folder."""

    @property
    def missing(self) -> Mapping[str, str]:
        """What is not on the page, and why."""


def render_page(
    subject: Subject,
    content: PageContent,
    *,
    subtitle: str,
    notes: Sequence[str] = (),
    recipe: Sequence[tuple[str, str]] = (),
    class_names: Sequence[str] = (),
) -> str:
    """The page's HTML, with everything inside it.

    Args:
        subject: a run, or anything else with a name and a folder; sections with sample images need a run.
        content: what the page says.
        subtitle: below the name.
        notes: sentences of the subject.
        recipe: rows of name and text, folded away at the end.
        class_names: that sample images name.
    """
    page = _environment().get_template("page.html.jinja")
    return page.render(
        run=subject,
        subtitle=subtitle,
        headline=content.headline,
        cards=content.cards,
        sections=content.sections,
        warnings=content.warnings,
        notes=notes,
        recipe=recipe,
        class_names=class_names,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        plotly=Markup(get_plotlyjs()),
    )


def flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of dotted name and text, in their order."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += flatten(value, f"{name}.")
        else:
            rows.append((name, _plain(value)))
    return rows


def _environment() -> Environment:
    # Escaping is on for every template, whatever its name ends in.
    environment = Environment(
        loader=PackageLoader("limbeck", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    style, _, _ = environment.loader.get_source(environment, "style.css")  # type: ignore[union-attr]
    environment.globals["style"] = Markup(style)
    environment.filters["inline_json"] = Markup
    return environment


def _subtitle(run: RunRecord) -> str:
    recipe = run.recipe
    if not run.has_method:
        model = recipe.get("model") or recipe.get("student")
        parts = [f"Network {model}" if model else "", f"data {recipe['data']}" if recipe.get("data") else ""]
    else:
        parts = [
            f"{name} {recipe[name]}"
            for name in ("teacher", "student", "method", "data")
            if recipe.get(name) is not None
        ]
    epochs = number(recipe.get("epochs"))
    parts.append(f"{epochs:g} epoch{'s' * (epochs != 1)}" if epochs is not None else "")
    text = " · ".join(part for part in parts if part)
    return capital(text)


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        shown = [_plain(item) for item in value[:LISTED]]
        if len(value) > LISTED:
            shown.append(f"... ({len(value)} in all)")
        return ", ".join(shown) or "none"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(item)}" for key, item in value.items()) or "none"
    return str(value)
