"""The results of mobile_backbones.py as JSON, a Markdown table and a plot of accuracy over latency."""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from limbeck.errors import UserError
from limbeck.files import atomic_write
from limbeck.run import Run
from limbeck.verbs.provenance import environment


@dataclass(frozen=True)
class Network:
    """A network of the comparison: the name that opens it, the name people know it by, and whose it is.

    `size` is the side in pixels it is shown images at; None is the side of the whole run.
    """

    name: str
    label: str
    group: Literal["ours", "control", "rival"]
    size: int | None = None


# Okabe and Ito's colours, told apart with every kind of colour vision, and a shape each for print in grey.
LOOKS = {
    "ours": ("#D55E00", "D", "irregular patches (ours)"),
    "control": ("#0072B2", "s", "DeiT shrunk to the same budgets"),
    "rival": ("#6b7280", "o", "other mobile backbones"),
}
INK, GRID = "#1b1f24", "#e3e7eb"


def write_page(out: Path, to: Path, networks: list[Network], *, command: str, stem: Callable[[str], str]) -> None:
    """Write TO.json, TO.md and TO.png from what has been measured so far.

    Args:
        out: the folder of the facts and cells.
        to: the three files' name without suffix.
        networks: known networks in the table's order; others found in the folder follow.
        command: that was typed.
        stem: a name's file name.

    Raises:
        UserError: nothing has been measured yet.
    """
    results = collect(out, networks, command=command, stem=stem)
    if not results["networks"]:
        raise UserError(f"{out} holds neither facts nor finished cells. Start with the parts facts and train.")
    for suffix, content in ((".json", json.dumps(results, indent=2) + "\n"), (".md", markdown(results, to))):
        with atomic_write(to.with_name(to.name + suffix)) as file:
            file.write(content.encode())
    drawn = [row for row in results["networks"] if row["facts"].get("latency_ms") and row["accuracy"]]
    if drawn:
        draw(drawn, results, to.with_name(to.name + ".png"))
    print(markdown(results, to))


# What was measured


def collect(out: Path, networks: list[Network], *, command: str, stem: Callable[[str], str]) -> dict[str, Any]:
    """Everything found in the folder, as plain values."""
    plan, facts = _read(out / "plan.json"), _read(out / "facts.json")
    side = plan.get("size", facts.get("size"))
    known = {network.name for network in networks}
    named = {_read(path)["name"] for path in sorted((out / "facts").glob("*.json"))} | _trained(out)
    rows = []
    for network in [*networks, *(Network(name, name, "rival") for name in sorted(named - known))]:
        file = f"{stem(network.name)}_{{}}.json"
        shown = network.size or side
        row = {
            **asdict(network),
            "size": shown,
            "facts": _read(out / "facts" / file.format(shown)),
            "published": _read(out / "facts" / file.format(facts.get("published_size"))),
            "accuracy": _accuracies(out / "cells" / stem(network.name)),
        }
        if row["facts"] or row["published"] or row["accuracy"]:
            rows.append(row)
    teacher = Run(out / "cells" / "teacher")
    return {
        "command": command,
        "plan": plan,
        "facts": facts,
        "environment": environment(torch.device("cpu")),
        "teacher": {"name": teacher.recipe.get("model"), "accuracy": teacher.accuracy} if teacher.summary else None,
        "networks": rows,
    }


def _trained(out: Path) -> set[str]:
    recipes = [Run(path.parent).recipe for path in (out / "cells").glob("*/*/summary.json")]
    return {recipe.get("model") or recipe["student"] for recipe in recipes}


def _accuracies(folder: Path) -> dict[str, dict[str, Any]]:
    """Method to accuracies of its finished seeds, in the order of the seeds."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for path in folder.glob("*/summary.json"):
        run = Run(path.parent)
        cell = run.accuracy, float(run.summary["training_seconds"])
        found.setdefault(run.recipe.get("method", "none"), {})[int(run.recipe["seed"])] = cell
    rows = {}
    for method, seeds in sorted(found.items(), key=lambda item: (item[0] != "none", item[0])):
        last = [seeds[seed][0] for seed in sorted(seeds)]
        rows[method] = {
            "seeds": sorted(seeds),
            "last": last,
            "mean": statistics.mean(last),
            "std": statistics.stdev(last) if len(last) > 1 else None,
            "training_seconds": [seeds[seed][1] for seed in sorted(seeds)],
        }
    return rows


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


# Table


def markdown(results: dict[str, Any], to: Path) -> str:
    """The page: what was spent, the comparison, and the counts at the published size."""
    rows, plan, facts = results["networks"], results["plan"], results["facts"]
    methods = _methods(rows)
    lines = ["# Mobile backbones under one recipe", "", *_budget(results), ""]
    if any(row["facts"].get("latency_ms") and row["accuracy"] for row in rows):
        lines += [f"![Accuracy over latency]({to.name}.png)", ""]
    columns = [
        "network",
        "px",
        "params M",
        "MACs M",
        "activations M",
        "latency ms",
        *(f"{_short(m)} %" for m in methods),
    ]
    lines += ["| " + " | ".join(columns) + " |", "| --- " + "| ---: " * (len(columns) - 1) + "|"]
    for row in rows:
        cells = [_percent(row["accuracy"].get(method)) for method in methods]
        lines.append("| " + " | ".join([_bold(row), str(row["size"]), *_costs(row["facts"]), *cells]) + " |")
    published = [row for row in rows if row["published"]]
    if published:
        lines += ["", f"At {facts['published_size']} px with 1000 classes, for comparison with published tables:", ""]
        lines += ["| network | params M | MACs M | activations M | latency ms |", "| --- | ---: | ---: | ---: | ---: |"]
        lines += ["| " + " | ".join([_bold(row), *_costs(row["published"])]) + " |" for row in published]
    versions = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    commands = [results["command"], plan.get("command"), facts.get("command")]
    lines += ["", f"{versions}.", "", *(f"    {text}" for text in commands if text), ""]
    return "\n".join(lines)


def _budget(results: dict[str, Any]) -> list[str]:
    plan = results["plan"]
    lines = []
    if plan:
        lines.append(
            f"Trained from random weights on {plan['images_per_class']} images of each of {plan['classes']} classes of "
            f"{plan['data']} for {plan['epochs']} epochs (batch {plan['batch_size']}, AdamW {plan['lr']:g}, cosine, "
            f"{plan['warmup_epochs']:g} epochs of warm-up, weight decay {plan['weight_decay']:g}, label smoothing "
            f"{plan['label_smoothing']:g}), resized to each network's side; chance is {100 / plan['classes']:.1f} %. "
            "Accuracy of the last epoch on the classes' test images, mean ± standard deviation over the seeds. "
            "So small a budget says nothing about the published accuracies."
        )
    if teacher := results["teacher"]:
        lines.append(
            f"Teacher: {teacher['name']}, {plan['teacher_epochs']} epochs, {100 * teacher['accuracy']:.1f} % on the same "
            "test images."
        )
    lines.append(
        "Multiply-adds (MACs) and activations are those of convolutions and matrix products for one image, with training-time "
        "branches folded; latency is onnxruntime's median for one image on one thread of this machine."
    )
    return lines


def _methods(rows: list[dict[str, Any]]) -> list[str]:
    found = dict.fromkeys(method for row in rows for method in row["accuracy"])
    return sorted(found, key=lambda method: (method != "none", method))


def _short(method: str) -> str:
    return "alone" if method == "none" else method


def _bold(row: dict[str, Any]) -> str:
    return f"**{row['label']}**" if row["group"] == "ours" else str(row["label"])


def _costs(facts: dict[str, Any]) -> list[str]:
    millions = [f"{facts[key] / 1e6:.{digits}f}" if facts else "" for key, digits in COSTS]
    return [*millions, f"{facts['latency_ms']:.2f}" if facts.get("latency_ms") else ""]


COSTS = (("parameters", 2), ("macs", 1), ("activations", 2))


def _percent(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    spread = f" ± {100 * cell['std']:.1f}" if cell["std"] is not None else ""
    return f"{100 * cell['mean']:.1f}{spread} ({len(cell['last'])})"


# Plot


def draw(rows: list[dict[str, Any]], results: dict[str, Any], path: Path) -> None:
    """Accuracy over latency: hollow alone, filled distilled, joined by a line where both were measured."""
    figure, axes = plt.subplots(figsize=(10, 6.6), dpi=150, layout="constrained")
    methods = _methods(rows)
    taught = next((method for method in methods if method != "none"), None)
    points: list[tuple[float, float]] = []
    anchors: list[tuple[float, float, str, str, bool]] = []
    for row in rows:
        colour, marker, _ = LOOKS[row["group"]]
        x = row["facts"]["latency_ms"]
        alone, distilled = (
            100 * row["accuracy"][m]["mean"] if m in row["accuracy"] else None for m in ("none", taught)
        )
        front = 4 if row["group"] == "ours" else 3
        size = 9 if row["group"] == "ours" else 6.5
        style = {"marker": marker, "color": colour, "markersize": size, "zorder": front, "linestyle": "none"}
        if alone is not None and distilled is not None:
            axes.plot([x, x], [alone, distilled], color=colour, linewidth=1.2, zorder=2)
        if alone is not None:
            axes.plot(x, alone, markerfacecolor="white", markeredgewidth=1.6, **style)
        if distilled is not None:
            axes.plot(x, distilled, **style)
        heights = [y for y in (alone, distilled) if y is not None]
        # A label may cover neither the markers nor the line between them.
        points += [(x, y) for y in np.linspace(min(heights), max(heights), 12)]
        anchors.append((x, max(heights), str(row["label"]), colour, row["group"] == "ours"))
    _dress(axes, results, taught)
    figure.canvas.draw()
    place_labels(axes, anchors, points)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _dress(axes: Axes, results: dict[str, Any], taught: str | None) -> None:
    plan = results["plan"]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.12)
    axes.grid(color=GRID, linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.set_xlabel("latency of one image, onnxruntime, one CPU thread [ms]", color=INK)
    axes.set_ylabel(f"accuracy on {plan['classes']} classes [%]", color=INK)
    budget = f"{plan['classes']} x {plan['images_per_class']} images, {plan['epochs']} epochs from random weights"
    axes.set_title(f"Mobile backbones under one small recipe: {budget}", loc="left", fontsize=11, color=INK)
    groups = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=text)
        for colour, marker, text in LOOKS.values()
    ]
    kinds = [Line2D([], [], color=INK, marker="o", linestyle="none", markerfacecolor="white", label="alone")]
    if taught is not None:
        teacher = f" from {results['teacher']['name']}" if results["teacher"] else ""
        kinds.append(
            Line2D([], [], color=INK, marker="o", linestyle="none", label=f"{taught.partition('(')[0]}{teacher}")
        )
    axes.figure.legend(handles=groups + kinds, loc="outside lower center", ncols=5, fontsize=8.5, frameon=False)


def place_labels(
    axes: Axes, anchors: list[tuple[float, float, str, str, bool]], points: list[tuple[float, float]]
) -> list[Bbox]:
    """Write each label at the nearest free place around its point; a thin line leads to those far off.

    Args:
        axes: with final limits.
        anchors: x, y, text, colour and whether it is bold.
        points: everything that no label may cover.

    Returns:
        The boxes of the labels in pixels; none meets another.
    """
    figure = axes.figure
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    unit = figure.dpi / 72
    reach = 5 * unit
    taken = [Bbox.from_extents(x - reach, y - reach, x + reach, y + reach) for x, y in axes.transData.transform(points)]
    inside, boxes = axes.get_window_extent(renderer), []
    # Ours first: they get the best places.
    for x, y, text, colour, bold in sorted(anchors, key=lambda anchor: not anchor[4]):
        label = axes.annotate(
            text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=8, color=colour,
            weight="bold" if bold else "normal", zorder=5,
        )  # fmt: skip
        size = label.get_window_extent(renderer)
        px, py = axes.transData.transform((x, y))
        offsets = [(dx, dy, radius) for radius in range(7, 120, 4) for dx, dy in DIRECTIONS]
        for dx, dy, radius in offsets:
            left = px + dx * radius * unit - size.width * (1 - dx) / 2
            bottom = py + dy * radius * unit - size.height * (1 - dy) / 2
            box = Bbox.from_bounds(left, bottom, size.width, size.height).padded(1)
            whole = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
            if whole and not any(box.overlaps(other) for other in taken):
                break
        label.set_position(((left - px) / unit, (bottom - py) / unit))
        if radius > 15:
            axes.annotate(
                "", (x, y), xytext=(dx * radius, dy * radius), textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
            )  # fmt: skip
        taken.append(box)
        boxes.append(box)
    return boxes


DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7))
