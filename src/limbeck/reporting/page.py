"""One self-contained HTML page about a run, made from the files in its folder alone.

plotly's script, the style, the figures' numbers and the images are all inside the page: it needs no network, no server
and no model, and its own content policy forbids it to fetch anything.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from limbeck.files import atomic_write
from limbeck.reporting.headline import Controls, gather_controls, percent, write_headline
from limbeck.reporting.run_reader import RunRecord, number, read_run
from limbeck.reporting.sections import all_sections, headline_cards, predictions_accuracy, short

# Longer lists, such as the names of all validation images, are cut to this many items.
LISTED = 12


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
        UserError: a folder is no run, or a control was distilled.
    """
    record = read_run(run)
    control_runs = [read_run(folder) for folder in controls]
    gathered = gather_controls(record, control_runs)
    headline = write_headline(record, gathered, control_runs)
    page = _environment().get_template("page.html.jinja").render(
        run=record,
        subtitle=_subtitle(record),
        headline=headline,
        cards=headline_cards(record, gathered),
        sections=all_sections(record, gathered),
        warnings=_warnings(record, gathered, control_runs),
        notes=_texts(record.summary.get("notes")),
        recipe=flatten(record.recipe) + flatten(record.provenance, "provenance."),
        class_names=record.class_names,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        plotly=Markup(get_plotlyjs()),
    )  # fmt: skip
    path = Path(out) if out is not None else record.path / "report.html"
    with atomic_write(path) as file:
        file.write(page.encode("utf-8"))
    return path


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
    environment.filters["short"] = short
    style, _, _ = environment.loader.get_source(environment, "style.css")  # type: ignore[union-attr]
    environment.globals["style"] = Markup(style)
    environment.filters["inline_json"] = Markup
    return environment


def _subtitle(run: RunRecord) -> str:
    recipe = run.recipe
    if not run.has_teacher:
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
    return text[:1].upper() + text[1:]


def _warnings(run: RunRecord, controls: Controls | None, control_runs: Sequence[RunRecord]) -> list[str]:
    found = [] if controls is None else list(controls.warnings)
    if controls is None and control_runs:
        found.append("None of the given controls has an accuracy yet.")
    broken = [r for r in run.train if "loss/total" in r and number(r["loss/total"]) is None]
    if broken:
        found.append(
            f"The training loss was not a finite number in {len(broken)} of {len(run.train)} records, first at step "
            f"{broken[0].get('step', 'unknown')}. A lower learning rate, a longer warm-up or 32-bit precision may help."
        )
    if run.predictions is not None and run.accuracy is not None:
        counted = predictions_accuracy(run.predictions)
        if abs(counted - run.accuracy) > 0.005:
            found.append(
                f"predictions.npz gives the student {percent(counted)}, the headline {percent(run.accuracy)}: the two "
                "are not of the same weights, so calibration, confusions and samples describe other weights."
            )
    return found


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
