"""Sections that a run of any task has: its losses, their terms, its speed, and which level learned from which."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbeck.reporting import curves
from limbeck.reporting.blocks import Card, Plot, Section, Table
from limbeck.reporting.controls import Controls
from limbeck.reporting.run_reader import Record, RunRecord, number
from limbeck.reporting.wording import duration, percent, short


def size_cards(run: RunRecord, at: str = "") -> list[Card]:
    """Parameters and multiply-adds, the student's beside the teacher's; `at` says for which size of image."""
    cards = []
    for key, title in (("parameters", "Parameters"), ("macs", "Multiply-adds per image")):
        sizes = run.summary.get(key)
        student = number(sizes.get("student")) if isinstance(sizes, dict) else None
        larger = number(sizes.get("teacher")) if isinstance(sizes, dict) else None
        if student is not None:
            note = f"teacher {short(larger)}: {larger / student:.1f} times as many" if larger and student else ""
            notes = (at if key == "macs" else "", note)
            cards.append(Card(title, short(student), "; ".join(text for text in notes if text)))
    return cards


def control_card(controls: Controls | None, title: str) -> Card:
    """The controls' mean, or that there is none."""
    if controls is None:
        return Card(title, "n/a", "none given")
    n = len(controls.values)
    return Card(title, controls.text, "one run, last epoch" if n == 1 else f"mean ± std of {n} runs, last epoch")


def loss_plot(run: RunRecord) -> Plot | None:
    """The training loss over the run."""
    if not measured(run.train, "loss/total"):
        return None
    caption = "The total is the weighted sum of all terms." if len(curves.term_names(run.train)) > 1 else ""
    return Plot("Training loss", caption, curves.loss_curve(run.train))


def reference_caption(run_teacher: float | None, controls: Controls | None) -> str:
    """What the dashed and dotted lines of a validation curve are, in brackets; empty without any."""
    lines = [
        "dashed: the teacher" if run_teacher is not None else "",
        "dotted: the control" + (" with its standard deviation" if controls.std is not None else "")
        if controls is not None
        else "",
    ]
    text = "; ".join(line for line in lines if line)
    return f" ({text})" if text else ""


def terms(run: RunRecord) -> Section | None:
    """The loss's terms against each other, and how hard each pulls."""
    plots = []
    if len(curves.term_names(run.train)) > 1:
        caption = (
            "Each term times its weight, as a share of their sum. A term that fills the picture drowns the others."
        )
        # An area needs two points to be seen.
        if len(run.train) > 1:
            plots.append(Plot("Weighted share of each term", caption, curves.share_curve(run.train)))
        figure = curves.term_curve(run.train)
        plots.append(Plot("Each term, unweighted", _axis(figure), figure))
    if curves.own_term_names(run.train):
        figure = curves.own_term_curve(run.train)
        caption = f"What the supervised loss is made of, as the model's own library weights it. {_axis(figure)}".strip()
        plots.append(Plot("The model's own terms", caption, figure, wide=True))
    names = curves.gradient_terms(run.gradients)
    if any(number(record.get(name)) for record in run.gradients for name in names):
        figure = curves.gradient_curve(run.gradients)
        caption = f"How hard each weighted term pulls on the student's parameters. {_axis(figure)}".strip()
        alone = not curves.cosine_pairs(run.gradients)
        plots.append(Plot("Gradient norm of each term", caption, figure, 280, wide=alone))
    if curves.cosine_pairs(run.gradients):
        caption = (
            "1 where two terms pull the same way, 0 where neither minds the other, -1 where one undoes the other. As the total "
            "nears a minimum the terms' gradients cancel, so cosines fall late in training in healthy runs too."
        )
        plots.append(Plot("Angles between the terms' gradients", caption, curves.cosine_curve(run.gradients), 280))
    return Section("terms", "Loss terms", plots=plots) if plots else None


def _axis(figure: Any) -> str:
    return "Logarithmic axis." if curves.is_logarithmic(figure) else ""


def speed(run: RunRecord) -> Section | None:
    """How long the run took, and what it waited for."""
    plots, text = [], []
    seconds, rate = number(run.summary.get("seconds")), number(run.summary.get("images_per_second"))
    if seconds is not None:
        digits = 0 if rate is None or rate >= 10 else 1
        text.append(
            f"The run took {duration(seconds)}" + (f" at {rate:,.{digits}f} images per second." if rate else ".")
        )
    if measured(run.train, "images_per_second"):
        plots.append(Plot("Throughput of training", "", curves.throughput_curve(run.train), 240))
    shares = time_shares(run.train)
    if shares:
        plots.append(Plot("Where the time goes", "Median over the run.", curves.time_bar(shares), 170))
        if shares.get("data", 0) > 0.4:
            took = f"Waiting for data takes {percent(shares['data'], 0)} of the time: "
            if run.recipe.get("data") == "none":
                text.append(f"{took}some or all of it is the making of images between epochs.")
            else:
                text.append(
                    f"{took}more workers (--num_workers), smaller stored images or a faster disk would speed this run up."
                )
    return Section("speed", "Speed", text, plots) if plots or text else None


def time_shares(train: Sequence[Record]) -> dict[str, float]:
    """Median share of the time for data, teacher, student and the rest; empty when none was measured."""
    medians: dict[str, float] = {}
    for name in ("data", "teacher", "student"):
        values = [v for v in (number(record.get(f"time/{name}")) for record in train) if v is not None]
        if values:
            medians[name] = float(np.median(values))
    whole = sum(medians.values())
    if not medians or whole <= 0:
        return {}
    if whole > 1:
        return {name: share / whole for name, share in medians.items()}
    return {**medians, "other": 1 - whole} if whole < 0.995 else medians


def pairs(run: RunRecord) -> Section | None:
    """Which of the student's levels a loss joins to which of the teacher's."""
    rows = [(str(p.get("loss", "")), str(p.get("student", "")), str(p.get("teacher", ""))) for p in pair_records(run)]
    if not rows:
        return None
    return Section(
        "pairs", "Which level learned from which", table=Table(("Loss", "Student level", "Teacher level"), rows)
    )


def pair_records(run: RunRecord) -> list[dict[str, Any]]:
    """The pairs that the summary lists."""
    found = run.summary.get("pairs")
    return [pair for pair in found if isinstance(pair, dict)] if isinstance(found, list) else []


def measured(records: Sequence[Record], key: str) -> bool:
    """Whether any record has a finite number of this name."""
    return any(number(record.get(key)) is not None for record in records)


def training_warnings(run: RunRecord) -> list[str]:
    """What went wrong while the run learned."""
    broken = [r for r in run.train if "loss/total" in r and number(r["loss/total"]) is None]
    if not broken:
        return []
    return [
        f"The training loss was not a finite number in {len(broken)} of {len(run.train)} records, first at step "
        f"{broken[0].get('step', 'unknown')}. A lower learning rate, a longer warm-up or 32-bit precision may help."
    ]
