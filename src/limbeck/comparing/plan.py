"""The cells of a comparison: their folders and options, and what of them is done already.

comparison.yaml        the comparison's recipe
cells/METHOD/seed0/    a run like any other, and beside it
  cell.yaml            its options, as they are given to `limbeck distill --config`
  log.txt              what it wrote to the terminal
  failed.txt           one sentence, where it ended without a result
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from limbeck.comparing.base import Cell, main_score
from limbeck.comparing.methods import shares_for, terms
from limbeck.comparing.recipe import FREE_ON_RESUME, CompareRecipe, options_of_runs
from limbeck.errors import UserError
from limbeck.files import atomic_write
from limbeck.recipe import DistillRecipe, as_plain, defaults_of, differences
from limbeck.run import Run, choose_run, read_recipe

RECIPE_FILE = "comparison.yaml"
CELL_FILE, LOG_FILE, FAILED_FILE = "cell.yaml", "log.txt", "failed.txt"


def choose_folder(recipe: CompareRecipe) -> Path:
    """The comparison's folder; new, or the one to go on with, with other options too as long as no run has come to anything.

    Raises:
        UserError: there is something else in it, nothing to go on with, or runs with other options.
    """
    if recipe.out == "auto":
        return choose_run("auto", "compare", recipe.student, recipe.data, resume=False).path
    folder = Path(recipe.out)
    kept = folder / RECIPE_FILE
    if not recipe.resume:
        if kept.exists():
            raise UserError(
                f"{folder} already holds a comparison. Add --resume to go on with it, or choose another --out."
            )
        return choose_run(recipe.out, "compare", recipe.student, recipe.data, resume=False).path
    if not kept.is_file():
        raise UserError(
            f"{folder} holds no comparison ({kept} is missing), so there is nothing to resume. Check the folder's name, or "
            "leave out --resume to start."
        )
    if not _has_runs(folder):
        return folder
    there = read_recipe(kept, "Put it back from a copy, or choose another --out.")
    old, new = ({**defaults_of(recipe), **values} for values in (there, as_plain(recipe)))
    shown = {name: value for name, value in new.items() if name not in FREE_ON_RESUME}
    if changed := differences({name: old.get(name) for name in shown}, shown):
        raise UserError(
            f"The comparison in {folder} was started with other options: {'; '.join(changed)}. Its runs and new ones could not "
            "be compared. Give the same options, or choose another --out."
        )
    return folder


def _has_runs(folder: Path) -> bool:
    """Whether any run in a comparison's folder, a short one or a whole one, has ended or can be gone on with."""
    return any(folder.rglob("checkpoints/last.ckpt")) or any(
        Run(file.parent).summary for file in folder.rglob("summary.json")
    )


def write_recipe(recipe: CompareRecipe, folder: Path) -> None:
    """Write comparison.yaml, which `--config` takes again."""
    with atomic_write(folder / RECIPE_FILE) as file:
        values = as_plain(recipe) | {"out": str(folder), "resume": False}
        file.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())


@contextmanager
def claimed(folder: Path) -> Iterator[int]:
    """Hold a comparison for this process alone; the operating system lets go of it when the process ends, however.

    Gives the lock's file descriptor: processes that inherit it hold the comparison too, until the last of them ends.

    Raises:
        UserError: the folder cannot be made, or another process is at work in it.
    """
    Run(folder).make()
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is at work on the comparison in {folder}; of one that was killed, the last runs may still be "
                "saving a checkpoint. Wait for it, or stop it first."
            ) from None
        yield file.fileno()


def make_cells(
    recipe: CompareRecipe,
    methods: Sequence[str],
    folder: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    given: Mapping[str, str] | None = None,
) -> list[Cell]:
    """A cell for each method and seed, methods in their order, seeds rising within.

    Args:
        recipe: the comparison.
        methods: as they are to be called.
        folder: the cells' folders are made in it.
        changes: options that all cells have instead of the recipe's.
        given: what a method is given to a run as, where that is not its name.
    """
    seeds = range(recipe.seed, recipe.seed + recipe.seeds)
    return [
        make_cell(recipe, method, seed, folder, changes, (given or {}).get(method))
        for method in methods
        for seed in seeds
    ]


def make_cell(
    recipe: CompareRecipe,
    method: str,
    seed: int,
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    given: str | None = None,
) -> Cell:
    """One cell; see `make_cells`."""
    own = {"method": given or method, "seed": seed, "balance": shares_for(method, recipe.balance)}
    options = options_of_runs(recipe) | dict(changes or {}) | own
    return Cell(method, seed, folder / slug(method) / f"seed{seed}", options)


def slug(method: str) -> str:
    """A method as a folder may be called: readable, and another one for every method."""
    readable = re.sub(r"[^A-Za-z0-9.=+_-]+", "_", method).strip("_.")[:60]
    if readable == method:
        return method
    return f"{readable}-{hashlib.blake2b(method.encode(), digest_size=3).hexdigest()}"


def finished(cell: Cell) -> bool:
    """Whether a cell has its result: a score."""
    return score_of(cell) is not None


def score_of(cell: Cell) -> float | None:
    """The main score of a finished cell: accuracy, of detectors the average precision of boxes; None where there is none."""
    return main_score(Run(cell.folder).summary)


def require_same(cell: Cell) -> None:
    """Refuse a cell whose run, finished or begun, had other options than are asked for now.

    A run's recipe holds what every "auto" was decided to be, so only options that are asked for outright are compared.

    Raises:
        UserError: naming each option with both values; or its recipe cannot be read.
    """
    run = Run(cell.folder)
    if not (run.summary or run.last_checkpoint.is_file()):
        return
    kept = read_recipe(cell.folder / "recipe.yaml", f"Delete {cell.folder} to train it anew, or choose another --out.")
    there = {**defaults_of_runs(), **kept}
    asked = {
        name: value
        for name, value in cell.options.items()
        if value != "auto" and name not in FREE_ON_RESUME and name in there
    }
    before = {name: there[name] for name in asked}
    for values in (asked, before):
        if "method" in values and values["method"] != "auto":
            values["method"] = {name: spec.options for name, spec in terms(values["method"]).items()}
    if changed := differences(before, asked):
        raise UserError(
            f"{cell.folder} holds a run with other options than this comparison's: {'; '.join(changed)}. Give the same "
            "options, delete that folder to train it anew, or choose another --out."
        )


def defaults_of_runs() -> dict[str, Any]:
    """The default of every option that a run may have had before it existed."""
    return defaults_of(DistillRecipe(teacher="", student="", data=""))


def write_cell(cell: Cell) -> Path:
    """Write a cell's options; they name neither folder nor whether it is continued, which the command line says."""
    file, run, options = cell.folder / CELL_FILE, Run(cell.folder), cell.options
    if run.last_checkpoint.is_file():
        # A run goes on only with its own options; with a checkpoint, its teacher has been accepted already.
        options = options | {name: value for name, value in run.recipe.items() if name == "trust_teacher"}
    with atomic_write(file) as opened:
        opened.write(yaml.safe_dump(options, sort_keys=False, allow_unicode=True).encode())
    return file


def note_failure(cell: Cell, sentence: str | None) -> None:
    """Write why a cell has no result; None takes an earlier note away."""
    file = cell.folder / FAILED_FILE
    if sentence is None:
        file.unlink(missing_ok=True)
        return
    with atomic_write(file) as opened:
        opened.write((sentence.strip() + os.linesep).encode())
