"""How fast each method is here: a short run of each, timed step by step."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import yaml

from limbeck.comparing.base import Cell
from limbeck.files import atomic_write
from limbeck.run import Run
from limbeck.training.records import read_records

PACE_FILE = "pace.json"
BATCHES = 12

# The first steps choose algorithms and fill caches.
STEPS_LEFT_OUT = 2


@dataclass(frozen=True)
class Pace:
    """What a run of a method takes.

    Attributes:
        method: as in its cell.
        fixed_seconds: of its process beside training: starting, opening data and models, measuring teacher and student once.
        seconds_per_image: of training.
        images: that the probe learned from in its epoch.
        weights: of its terms, by name, as they were resolved.
        warmup_epochs: of these weights.
    """

    method: str
    fixed_seconds: float
    seconds_per_image: float
    images: int
    weights: dict[str, float] = field(default_factory=dict)
    warmup_epochs: dict[str, float] = field(default_factory=dict)

    def seconds(self, passes: float) -> float:
        """Of a run that looks at so many images in all its epochs."""
        return self.fixed_seconds + self.seconds_per_image * passes


def probe_changes(images: int | None, classes: int, batch_size: int) -> dict[str, Any]:
    """What makes a run a probe.

    Args:
        images: there are, or None where they cannot be made fewer (detectors): then it learns from all of them, once.
        classes: of the images; each keeps at least one.
        batch_size: of a step.
    """
    changes: dict[str, Any] = {"epochs": 1, "eval_every": 1, "log_every": 1, "loggers": [], "warmup_epochs": 0.0}
    if images is not None:
        changes["max_train_images"] = min(images, max(classes, BATCHES * batch_size))
    return changes


def read_paces(cells: Sequence[Cell], seconds: dict[Any, float]) -> dict[str, Pace]:
    """The pace of each finished probe by its method; kept beside the run, since its process is timed only once.

    Args:
        cells: the probes.
        seconds: that the processes took, by the cells' folders; those that are not in it ran before.
    """
    found = {}
    for cell in cells:
        file = cell.folder / PACE_FILE
        if not Run(cell.folder).summary:
            continue
        if cell.folder in seconds or not file.is_file():
            pace = _measure(cell, seconds.get(cell.folder))
            with atomic_write(file) as opened:
                opened.write(json.dumps(asdict(pace), indent=2).encode())
        found[cell.method] = Pace(**json.loads(file.read_text()))
    return found


def _measure(cell: Cell, seconds: float | None) -> Pace:
    run = Run(cell.folder)
    summary = run.summary
    provenance = yaml.safe_load((run.path / "provenance.yaml").read_text())
    rates = [float(row["images_per_second"]) for row in read_records(run.metrics_file) if row["kind"] == "train"]
    rate = float(np.median(rates[STEPS_LEFT_OUT:] or rates))
    training = float(summary["training_seconds"])
    images = int(provenance["data"].get("train_images") or round(rate * training))
    whole = float(summary["seconds"]) if seconds is None else seconds
    return Pace(
        cell.method,
        fixed_seconds=max(0.0, whole - images / rate),
        seconds_per_image=1 / rate,
        images=images,
        weights={name: float(weight) for name, weight in provenance["loss_weights"].items() if name != "task"},
        warmup_epochs={name: float(epochs) for name, epochs in provenance["loss_warmup_epochs"].items()},
    )
