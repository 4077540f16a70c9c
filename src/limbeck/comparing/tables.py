"""The comparison as tables: on the terminal, as CSV (a row a cell, a row a method) and as JSON."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.comparing.base import Outcome
from limbeck.comparing.intervals import Estimate
from limbeck.comparing.statistics import Comparison, Difference, MethodResult
from limbeck.comparing.words import answer, mean_and_spread, signed, span
from limbeck.files import atomic_write

Row = dict[str, Any]

# A terminal of fewer columns would break every cell; what is left out there stands in methods.csv and on the page.
WIDE = 110
LEFT_OUT_WHERE_NARROW = ("agreement", "memory")

# Verdicts in a column.
SHORT = {"helps": "helps", "hurts": "hurts", "no difference shown": "not\u00a0shown", "too few seeds": "one\u00a0seed"}


def show(comparison: Comparison, console: Console) -> None:
    """Print the table, then the answer in words."""
    drawn = Table(
        title=f"{comparison.score_name.capitalize() if comparison.score_name != 'AP' else 'AP'} after the last epoch",
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    header, rows = result_rows(comparison)
    if console.width < WIDE:
        places = [place for place, column in enumerate(header) if column not in LEFT_OUT_WHERE_NARROW]
        header, rows = tuple(header[i] for i in places), [tuple(row[i] for i in places) for row in rows]
    for place, column in enumerate(header):
        drawn.add_column(column, justify="left" if place == 0 or column == "verdict" else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row))
    console.print(drawn)
    said = answer(comparison)
    for line in said.lines:
        console.print(escape(line), soft_wrap=True)
    console.print(f"[bold]{escape(said.conclusion)}[/bold]", soft_wrap=True)
    for note in said.notes:
        console.print(f"[yellow]•[/yellow] {escape(note)}", soft_wrap=True)


def result_rows(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and one row a method, the best mean first; columns that would be empty throughout are left out."""
    columns: dict[str, list[str]] = {}
    digits = _digits(comparison)

    def put(column: str, text: str) -> None:
        columns.setdefault(column, []).append(text)

    for result in comparison.ranked:
        first, second = result.against_control, result.against_plain
        put("method", result.method)
        put("seeds", _seeds(result))
        put(comparison.score_name, mean_and_spread(result))
        put(f"over {comparison.control}", _over(first, digits))
        put("verdict", "control" if result.method == comparison.control else SHORT[first.verdict] if first else "–")
        put(f"over {comparison.plain}", _over(second, digits))
        put("agreement", "–" if result.agreement is None else f"{100 * result.agreement:.1f} %")
        put("s/epoch", _times(result.cost.seconds_per_epoch, result.cost.time_ratio))
        put("memory", _times(_gigabytes(result.cost.peak_memory), result.cost.memory_ratio, " GB"))
    # One number of seeds for all is no news.
    uniform = len(set(columns["seeds"])) == 1 and "of" not in columns["seeds"][0]
    kept = [name for name, texts in columns.items() if any(text != "–" for text in texts)]
    kept = [name for name in kept if name != "seeds" or not uniform]
    return tuple(kept), [tuple(row) for row in zip(*(columns[name] for name in kept), strict=True)]


def write_csv(comparison: Comparison, file: Path) -> None:
    """Write one row a cell."""
    _write_rows(file, [_cell(outcome) for outcome in comparison.outcomes])


def write_methods_csv(comparison: Comparison, file: Path) -> None:
    """Write one row a method; scores are 0 to 1, differences are of such scores."""
    _write_rows(file, [_method(result) for result in comparison.ranked])


def write_json(comparison: Comparison, file: Path) -> None:
    """Write everything that is said of methods, classes and cells, and the answer in words; NaN becomes null."""
    said = answer(comparison)
    values = {
        "conclusion": said.conclusion,
        "lines": list(said.lines),
        "notes": list(said.notes),
        "score": comparison.score_name,
        "images": comparison.images,
        "epochs": comparison.epochs,
        "teacher_score": comparison.teacher_score,
        "methods": [
            _method(result)
            | {
                "scores": {str(o.seed): o.score for o in result.finished},
                "differences": {
                    d.reference: {str(seed): value for seed, value in zip(d.seeds, d.values, strict=True)}
                    for d in (result.against_control, result.against_plain)
                    if d is not None
                },
                "classes": _classes(result),
            }
            for result in comparison.ranked
        ],
        "cells": [_cell(o) | {"curve": o.curve.tolist()} for o in comparison.outcomes],
    }
    with atomic_write(file) as out:
        out.write(json.dumps(_plain(values), indent=1, allow_nan=False, ensure_ascii=False).encode())


def _seeds(result: MethodResult) -> str:
    whole = len(result.cells) == len(result.finished)
    return f"{len(result.finished)}" if whole else f"{len(result.finished)} of {len(result.cells)}"


def _digits(comparison: Comparison) -> int:
    """Decimals for a whole column: two where most intervals are narrower than a point."""
    found = (d for r in comparison.methods for d in (r.against_control, r.against_plain) if d is not None)
    widths = [d.over_seeds.high - d.over_seeds.low for d in found if d.over_seeds is not None]
    return 2 if widths and float(np.median(widths)) < 0.01 else 1


def _over(found: Difference | None, digits: int) -> str:
    if found is None:
        return "–"
    interval = found.over_seeds
    return signed(found.mean, digits) + (f" ({span(interval, digits)})" if interval is not None else "")


def _gigabytes(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def _times(value: float | None, ratio: float | None, unit: str = "") -> str:
    """A cost, with how many times the control's it is where that differs."""
    if value is None:
        return "–"
    text = f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"
    return f"{text}{unit}" if ratio is None or abs(ratio - 1) < 0.005 else f"{text}{unit} ({ratio:.2f}x)"


def _cell(outcome: Outcome) -> Row:
    return {
        "method": outcome.method,
        "seed": outcome.seed,
        "state": outcome.state,
        "score": outcome.score,
        "agreement": outcome.agreement,
        "seconds_per_epoch": outcome.seconds_per_epoch,
        "seconds": outcome.seconds,
        "peak_memory": outcome.peak_memory,
        "teacher_score": outcome.teacher_score,
        "epochs": outcome.epochs,
        "folder": str(outcome.folder),
        "message": outcome.message,
    }


def _method(result: MethodResult) -> Row:
    reached = result.reach
    return {
        "method": result.method,
        "cells": len(result.cells),
        "finished": len(result.finished),
        "failed": len(result.failed),
        "mean": result.mean,
        "std": result.std,
        **_estimate("mean", result.over_seeds, with_p=False),
        **_against("none", result.against_control),
        **_against("kd", result.against_plain),
        "agreement": result.agreement,
        **asdict(result.cost),
        "seconds_to_control_score": reached.seconds if reached else None,
        "share_of_control_time": reached.share if reached else None,
        "seeds_that_reached_it": reached.reached if reached else None,
    }


def _against(name: str, found: Difference | None) -> Row:
    return {
        f"over_{name}": found.mean if found else None,
        **_estimate(f"over_{name}_seeds", found.over_seeds if found else None),
        **_estimate(f"over_{name}_seeds_own", found.own if found else None),
        f"over_{name}_seeds_p_holm": found.adjusted_p if found else None,
        **_estimate(f"over_{name}_images", found.over_images if found else None),
        f"over_{name}_verdict": found.verdict if found else None,
    }


def _estimate(name: str, found: Estimate | None, *, with_p: bool = True) -> Row:
    parts = {"low": found.low if found else None, "high": found.high if found else None}
    if with_p:
        parts["p"] = found.p if found else None
    return {f"{name}_{part}": value for part, value in parts.items()}


def _classes(result: MethodResult) -> dict[str, Row] | None:
    gains = result.gains
    if gains is None:
        return None
    return {
        name: {"gain": float(gain), "error": float(error), "p_holm": float(p)}
        for name, gain, error, p in zip(gains.names, gains.gains, gains.errors, gains.p, strict=True)
    }


def _write_rows(file: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    with atomic_write(file) as out:
        out.write(text.getvalue().encode())


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
