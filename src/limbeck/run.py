"""A run's folder: what is in it, and how it is written so that nothing is ever half-written.

recipe.yaml            the resolved recipe, versions, seed, licences and hashes
metrics.jsonl, .csv    one record per logging interval, validation and gradient measurement
checkpoints/           last.ckpt and best.ckpt
student.safetensors    the trained network alone, with model.json, from which it is rebuilt
MODEL_CARD.md          what it is, what it learned from, under which licences
summary.json           the final numbers
predictions.npz        labels and both models' logits on the validation images
cka.npz, samples.npz   similarity of the two models' levels; images to look at
detections.npz, detection_scores.json, samples/
                       of a detector instead: what both models find, average precision, images to look at
pseudo_labels.json     of a detector that learned from unlabelled images: what the teacher found in them
report.html            the page a person reads
export/                artefacts and their verification
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import UserError
from limbeck.files import atomic_write
from limbeck.models.names import file_stem


class Run:
    """Paths and small files of one run.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def last_checkpoint(self) -> Path:
        """Everything needed to go on after a stop."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The same at the epoch of the best validation accuracy."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def report_file(self) -> Path:
        """The page a person reads."""
        return self.path / "report.html"

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain values; empty when the run has none.

        Raises:
            UserError: the file is damaged.
        """
        file = self.path / "recipe.yaml"
        return read_recipe(file, "Put it back from a copy, or train that run anew.") if file.is_file() else {}

    @property
    def summary(self) -> dict[str, Any]:
        """The final numbers; empty before the run has ended, and where the file is damaged: such a run has no result."""
        try:
            values = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    @property
    def accuracy(self) -> float:
        """Validation accuracy of the last epoch, 0 to 1."""
        return float(self.summary["accuracy"]["last"])

    def make(self) -> None:
        """Make the folder.

        Raises:
            UserError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The run's folder {self.path} cannot be made: {error.strerror}. Choose another with --out."
            ) from error

    def write_recipe(self, values: dict[str, Any]) -> None:
        """Write recipe.yaml."""
        with atomic_write(self.path / "recipe.yaml") as file:
            file.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())

    def write_summary(self, values: dict[str, Any]) -> None:
        """Write summary.json."""
        with atomic_write(self.path / "summary.json") as file:
            file.write(json.dumps(values, indent=2).encode())

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run."""
        with atomic_write(self.path / name) as file:
            file.write(text.encode())


def read_recipe(file: Path, remedy: str) -> dict[str, Any]:
    """The named values of a recipe that Limbeck wrote.

    Args:
        file: recipe.yaml of a run, or comparison.yaml.
        remedy: a sentence that says what to do where it is missing or damaged.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        reason = "it does not hold named values"
    except (OSError, ValueError, yaml.YAMLError) as error:
        values, reason = None, "it is missing" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
    if not isinstance(values, dict):
        raise UserError(f"{file} cannot be read: {reason}. {remedy}")
    return values


def process_rank(devices: int = 1) -> int:
    """This process's number among those of a multi-device run, as Lightning, torchrun and SLURM tell it; 0 for the first.

    Args:
        devices: processes on each machine, to count across machines where only a machine's number and a place on it are told.
    """
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("NODE_RANK", "0")) * devices + int(os.environ["LOCAL_RANK"])
    return int(os.environ.get("SLURM_PROCID", "0"))


def choose_run(out: str, verb: str, model: str, data: str, *, resume: bool, parent: str | Path = "runs") -> Run:
    """The folder of a new run, not yet made, or of the one to be resumed.

    Args:
        out: a folder, or "auto" for a new numbered one under `parent`.
        verb, model, data: for the name of a new folder.
        resume: the folder must hold a checkpoint.
        parent: where "auto" folders are made.

    Raises:
        UserError: the folder holds another run, or no checkpoint to resume from.
    """
    if process_rank() > 0:
        # Lightning starts further processes with the first one's environment; torchrun and SLURM start all alike.
        inherited = os.environ.get("LIMBECK_RUN_FOLDER", out)
        if inherited == "auto":
            raise UserError(
                "With several processes, name the run's folder with --out, so that all of them mean the same."
            )
        return Run(inherited)
    if out == "auto":
        images = re.sub(r"[^A-Za-z0-9_.]+", "_", Path(data).name or data).strip("_")
        stem = f"{verb}-{file_stem(model)}-{images}"
        numbers = (number for number in range(1, 100_000))
        path = next(p for p in (Path(parent) / f"{stem}-{number}" for number in numbers) if not p.exists())
        run = Run(path)
    else:
        run = Run(out)
        if run.path.is_file():
            raise UserError(f"--out {out} is a file; name a folder for the run.")
        if resume and not run.last_checkpoint.is_file():
            raise UserError(
                f"{run.path} holds no checkpoint ({run.last_checkpoint} is missing), so there is nothing to resume. "
                "Check the folder's name, or leave out --resume to start."
            )
        # A run that stopped before its first checkpoint has nothing to lose and may be started anew.
        if not resume and (run.last_checkpoint.exists() or run.summary):
            raise UserError(
                f"{run.path} already holds a run. Add --resume to go on with it, or choose another --out folder."
            )
    return run
