"""One self-contained HTML page about a comparison, in the style of a run's report and as free of any network."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from limbeck.comparing import figures
from limbeck.comparing.base import Outcome
from limbeck.comparing.class_section import class_section
from limbeck.comparing.ranking import RankAgreement, Ranking, chance_words
from limbeck.comparing.statistics import Comparison, Difference, MethodResult
from limbeck.comparing.tables import result_rows
from limbeck.comparing.words import Answer, answer, mean_and_spread
from limbeck.files import atomic_write
from limbeck.reporting.blocks import Card, Headline, PageContent, Plot, Section, Table
from limbeck.reporting.page import flatten, render_page
from limbeck.reporting.wording import counted, duration, percent

PAGE = "report.html"

# What all cells share is the recipe; these differ from cell to cell.
OWN = ("method", "seed", "out", "resume")


@dataclass(frozen=True)
class _Folder:
    name: str
    path: Path
    missing: dict[str, str] = field(default_factory=dict)


def write_page(
    comparison: Comparison,
    folder: Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    ranking: Ranking | None = None,
    agreement: RankAgreement | None = None,
) -> Path:
    """Write the page of a comparison, also of one that is not finished.

    Args:
        comparison: what the cells say.
        folder: where report.html is written; the runs' own reports are linked relative to it.
        recipe: options that all cells share.
        notes: further sentences, such as what a budget cut.
        ranking: a budget's prediction.
        agreement: how a budget's ranking fared against this comparison.

    Returns:
        The page's path.
    """
    said = answer(comparison)
    shared = {name: value for name, value in (recipe or {}).items() if name not in OWN}
    missing: dict[str, str] = {}
    content = PageContent(
        headline=Headline(said.conclusion, said.lines),
        cards=_cards(comparison),
        sections=[
            section
            for section in (
                _methods(comparison, said, notes),
                _ranking(ranking, agreement),
                _scores(comparison),
                _differences(comparison),
                _cost(comparison),
                class_section(comparison, missing),
                _teacher(comparison),
                _cells(comparison, folder),
            )
            if section is not None
        ],
        warnings=list(comparison.warnings),
    )
    page = render_page(
        _Folder(folder.resolve().name, folder, missing),
        content,
        subtitle=_subtitle(comparison, shared),
        recipe=flatten(shared),
    )
    path = folder / PAGE
    with atomic_write(path) as file:
        file.write(page.encode("utf-8"))
    return path


def _subtitle(comparison: Comparison, recipe: Mapping[str, Any]) -> str:
    parts = ["Comparison of " + counted(len(comparison.methods), "method")]
    parts += [f"{name} {recipe[name]}" for name in ("teacher", "student", "data") if recipe.get(name) is not None]
    parts.append(counted(len(comparison.seeds), "seed"))
    parts += [counted(comparison.epochs, "epoch")] if comparison.epochs is not None else []
    return " · ".join(parts)


def _cards(comparison: Comparison) -> list[Card]:
    scored = [r for r in comparison.ranked if r.mean is not None]
    control = comparison.of(comparison.control) if comparison.control is not None else None
    done = [o for o in comparison.outcomes if o.state == "finished"]
    cards = []
    if scored:
        cards.append(Card("Highest mean", mean_and_spread(scored[0]), scored[0].method))
    if control is not None:
        cards.append(
            Card("Control", mean_and_spread(control), f"{control.method}, {counted(len(control.finished), 'seed')}")
        )
    if comparison.teacher_score is not None:
        cards.append(Card("Teacher", percent(comparison.teacher_score), "on the same images"))
    failed = sum(o.state == "failed" for o in comparison.outcomes)
    waiting = sum(o.state == "waiting" for o in comparison.outcomes)
    others = [f"{failed} failed" if failed else "", f"{waiting} not finished" if waiting else ""]
    note = ", ".join(text for text in others if text) or "all finished"
    cards.append(Card("Cells", f"{len(done)} of {len(comparison.outcomes)}", note))
    seconds = sum(o.seconds or 0.0 for o in done)
    if seconds:
        cards.append(Card("Time of all cells", duration(seconds), "one after the other, measuring included"))
    if comparison.images is not None:
        cards.append(Card("Validation images", str(comparison.images), "the same for all cells"))
    return cards


def _methods(comparison: Comparison, said: Answer, notes: Sequence[str]) -> Section:
    header, rows = result_rows(comparison)
    text_columns = ("method", "verdict")
    return Section(
        "methods",
        "Methods",
        text=[*notes, *(note for note in said.notes if note not in comparison.warnings)],
        table=Table(header, rows, numeric=tuple(i for i, name in enumerate(header) if name not in text_columns)),
    )


def _ranking(ranking: Ranking | None, agreement: RankAgreement | None) -> Section | None:
    if ranking is None and agreement is None:
        return None
    # The order itself is in the table.
    text = ranking.sentences[1:] if ranking is not None else []
    text += [agreement.sentence] if agreement is not None else []
    plots, table = [], None
    if ranking is not None:
        table = Table(
            ("rank", "method", "mean", "chance of being best", "before the next", "ranks"),
            [
                (
                    str(place + 1),
                    method,
                    percent(float(ranking.means[place])),
                    chance_words(float(ranking.best[place])),
                    chance_words(float(ranking.right[place])) if place < len(ranking.right) else "–",
                    "{} to {}".format(*ranking.ranks[place]),
                )
                for place, method in enumerate(ranking.order)
            ],
            numeric=(0, 2, 3, 4, 5),
        )
        caption = "The middle 95 % of the ranks that each method takes when the scores are drawn again."
        plots = [
            Plot("Ranks", caption, figures.rank_bars(ranking), height=figures.row_height(len(ranking.order)), wide=True)
        ]
    return Section(
        "ranking",
        "Predicted ranking",
        text=text,
        plots=plots if ranking and ranking.covers != "nothing" else [],
        table=table,
    )


def _scores(comparison: Comparison) -> Section | None:
    scored = [r for r in comparison.methods if r.mean is not None]
    if not scored:
        return None
    interval = " with its 95 % interval over seeds" if any(r.over_seeds for r in scored) else ""
    caption = (
        f"Faint dots are seeds, the stroke is their mean{interval}. These intervals include what all methods share of a seed; "
        "for who is better, look at the paired differences below."
        if interval
        else "One seed a method: there is no spread to show."
    )
    plot = Plot(
        "Every seed", caption, figures.score_dots(comparison), height=figures.row_height(len(scored)), wide=True
    )
    return Section("scores", "Scores", plots=[plot])


def _differences(comparison: Comparison) -> Section | None:
    against = {
        comparison.control: [(r.method, r.against_control) for r in comparison.ranked],
        comparison.plain: [(r.method, r.against_plain) for r in comparison.ranked],
    }
    held = {
        reference: [(method, found) for method, found in differences if found is not None]
        for reference, differences in against.items()
        if reference is not None
    }
    # Figures beside each other are of one height.
    height = figures.row_height(max(map(len, held.values()), default=0))
    plots = [
        Plot(
            f"Over {reference}",
            _difference_caption(found),
            figures.difference_bars(comparison, found),
            height=height,
        )
        for reference, found in held.items()
        if found
    ]
    return Section("differences", "Paired differences", plots=plots) if plots else None


def _difference_caption(held: Sequence[tuple[str, Difference]]) -> str:
    parts = ["Faint dots: differences of runs of the same seed."]
    if any(found.over_seeds is not None for _, found in held):
        parts.append(
            "Stroke and bar: their mean with its 95 % interval over seeds; green helps, red hurts, grey shows no difference."
        )
    else:
        parts.append("Stroke: the difference; one seed gives no interval over seeds.")
    if any(found.over_images is not None for _, found in held):
        parts.append("Pale line below: the 95 % interval over images.")
    return " ".join(parts)


def _cost(comparison: Comparison) -> Section | None:
    scored = [r for r in comparison.ranked if r.mean is not None]
    plots = []
    if any(len(o.curve) for r in scored for o in r.finished):
        caption = (
            "Means over the seeds; the dotted line is the control's final mean. Time is of training, without measuring."
        )
        plots.append(Plot("Score against time", caption, figures.time_curves(comparison), height=400))
    if any(r.cost.seconds_per_epoch is not None for r in scored):
        memory = " The larger a dot, the higher its peak memory." if any(r.cost.peak_memory for r in scored) else ""
        caption = f"Upper left is best: a high score for little time.{memory}"
        plots.append(Plot("Score against cost", caption, figures.cost_scatter(comparison), height=400))
    if not plots:
        return None
    rows = [_reach_row(r) for r in scored if r.reach is not None and r.method != comparison.control]
    table = Table(
        ("method", "reaches the control's final score after", "share of the control's training", "seeds that reach it"),
        rows,
        numeric=(1, 2, 3),
    )
    text = [
        "Cells that ran beside each other on one machine shared it; their times say less than those of cells run alone."
    ]
    return Section("cost", "Time and memory", text=text, plots=plots, table=table if rows else None)


def _reach_row(result: MethodResult) -> tuple[str, ...]:
    reached = result.reach
    assert reached is not None
    return (
        result.method,
        "never" if reached.seconds is None else duration(reached.seconds),
        "–" if reached.share is None else f"{100 * reached.share:.0f} %",
        f"{reached.reached} of {reached.of}",
    )


def _teacher(comparison: Comparison) -> Section | None:
    if sum(r.agreement is not None for r in comparison.methods) < 2:
        return None
    caption = "Share of validation images on which student and teacher answer alike, rightly or wrongly; means over the seeds."
    plot = Plot("Agreement and score", caption, figures.agreement_scatter(comparison), height=400, wide=True)
    return Section("teacher", "Agreement with the teacher", plots=[plot])


def _cells(comparison: Comparison, folder: Path) -> Section:
    rows = [
        (
            o.method,
            str(o.seed),
            o.state if not o.message else f"{o.state}: {o.message}",
            "–" if o.score is None else percent(o.score),
            "–" if o.seconds is None else duration(o.seconds),
            _link(o, folder),
        )
        for o in comparison.outcomes
    ]
    header = ("method", "seed", "state", comparison.score_name, "time", "report")
    return Section("cells", "Cells", table=Table(header, rows, numeric=(1, 3, 4)))


def _link(outcome: Outcome, folder: Path) -> str:
    """A link to the run's own report, where there is one; text that the template need not escape."""
    report = outcome.folder / PAGE
    if not report.is_file():
        return "–"
    target = os.path.relpath(report.resolve(), folder.resolve())
    return Markup('<a href="{}">report</a>').format(quote(Path(target).as_posix()))
