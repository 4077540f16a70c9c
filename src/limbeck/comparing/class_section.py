"""What each method does to each class, on the comparison's page."""

import numpy as np
from numpy.typing import NDArray

from limbeck.comparing import figures
from limbeck.comparing.statistics import Comparison, MethodResult
from limbeck.comparing.words import signed
from limbeck.reporting.blocks import Plot, Section, Table

# Beyond so many classes the heat map shows those that change most.
CLASSES = 50


def class_section(comparison: Comparison, missing: dict[str, str]) -> Section | None:
    """The heat map, and the classes that stand out.

    Args:
        comparison: what the cells say.
        missing: is told when no class's score could be read.
    """
    held = [r for r in comparison.ranked if r.gains is not None]
    if not held:
        if any(r.against_control is not None for r in comparison.methods):
            missing["Gains of each class"] = "the runs' scores by class could not be read"
        return None
    first = held[0].gains
    assert first is not None
    every = np.array([r.gains.gains for r in held if r.gains is not None])
    order, caption = _class_order(every)
    rows = [row for r in held for row in _standing_out(r)]
    covers = {
        "seeds and images": "other seeds and other images",
        "seeds alone": "other seeds",
        "images alone": "other images",
    }
    counted_chance = covers.get(first.covers)
    noise = (
        f"A dot marks gains and losses that noise ({counted_chance}) does not explain, after Holm's correction over the "
        "classes of a method."
        if counted_chance
        else "With one seed, and no answers image by image, there is nothing to tell noise from: no gain is marked."
    )
    plot = Plot(
        f"Points over {comparison.control}",
        caption,
        figures.class_heatmap(held, first.names, order),
        height=27 * len(held) + 190,
        wide=True,
        least_width=260 + 13 * len(order),
    )
    table = Table(
        ("method", "class", "gain in points", "standard error"),
        rows,
        numeric=(2, 3),
        caption="More than noise explains",
    )
    text = [noise] if rows or not counted_chance else [noise, "No class gains or loses more than that."]
    return Section("classes", "Gains of each class", text=text, plots=[plot], table=table if rows else None)


def _class_order(gains: NDArray[np.float64]) -> tuple[NDArray[np.integer], str]:
    """Which classes are shown, the one that gains most on average first."""
    known = np.flatnonzero(np.isfinite(gains).any(0))
    mean, largest = np.nanmean(gains[:, known], axis=0), np.nanmax(np.abs(gains[:, known]), axis=0)
    caption = "Classes from the largest mean gain to the largest mean loss."
    if len(known) > CLASSES:
        kept = np.sort(np.argsort(-largest, kind="stable")[:CLASSES])
        caption += f" Of {len(known)} classes the {CLASSES} that change most; comparison.json has all."
        known, mean = known[kept], mean[kept]
    return known[np.argsort(-mean, kind="stable")], caption


def _standing_out(result: MethodResult, most: int = 12) -> list[tuple[str, ...]]:
    gains = result.gains
    assert gains is not None
    places = np.flatnonzero(gains.stand_out)
    places = places[np.argsort(-np.abs(gains.gains[places]), kind="stable")]
    rows: list[tuple[str, ...]] = [
        (result.method, gains.names[c], signed(float(gains.gains[c])), f"{100 * gains.errors[c]:.1f}")
        for c in places[:most]
    ]
    if len(places) > most:
        rows.append((result.method, f"and {len(places) - most} more", "", ""))
    return rows
