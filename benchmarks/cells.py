"""Cells of a benchmark, finished by any number of processes that share a folder.

A cell is claimed by a lock on a file that the operating system lets go of when its process dies, so that a killed cell is
taken over, and resumed, by whoever comes next. Finished cells are found again.
"""

import fcntl
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import limbeck
from limbeck.errors import UserError
from limbeck.run import Run
from limbeck.training.checkpoints import StoppedByUserError

POLL_SECONDS = 5.0
# A network that makes the process itself die, not only its training, must not take all processes with it.
ATTEMPTS = 3


@dataclass(frozen=True)
class Cell:
    """One training, or one making of images.

    Attributes:
        folder: of its run.
        verb: `limbeck.train`, `distill` or `synthesize`.
        values: the verb's options.
        needs: folders of the cells that must be finished before.
        essential: the benchmark ends where this one cannot be made.
    """

    folder: Path
    verb: Any
    values: dict[str, Any]
    needs: tuple[Path, ...] = ()
    essential: bool = False


def work(cells: list[Cell]) -> None:
    """Take free cells until all are finished, here or by another process; one that cannot be trained is said and left out."""
    waiting = list(cells)
    while waiting:
        for cell in waiting:
            if not all(finished(folder) for folder in cell.needs):
                continue
            if finish(cell):
                waiting.remove(cell)
                break  # the first ones may be ready by now
        else:
            time.sleep(POLL_SECONDS)


def finish(cell: Cell) -> bool:
    """Whether there is nothing left to do: finished before, now, or impossible. False: another process is at it."""
    if finished(cell.folder):
        return True
    lock, where = cell.folder.with_name(cell.folder.name + ".lock"), f"{cell.folder.parent.name}/{cell.folder.name}"
    with claim(lock) as mine:
        if not mine:
            return False
        run = Run(cell.folder)
        if finished(cell.folder):  # finished while we asked
            return True
        if len(lock.read_text().splitlines()) >= ATTEMPTS:
            print(f"{where} left out: {ATTEMPTS} processes died at it. Delete {lock} to try again.", flush=True)
            return True
        with lock.open("a") as file:
            file.write(f"{os.getpid()}\n")
        try:
            begun = run.last_checkpoint.is_file() or (cell.verb is limbeck.synthesize and run.path.is_dir())
            cell.verb(**cell.values, out=str(cell.folder), resume=begun)
        except StoppedByUserError:
            raise
        except UserError as error:
            if cell.essential:
                raise
            print(f"{where} left out: {error}", flush=True)
            return True
        if not run.summary:
            return True
        print(f"{where}: {100 * run.accuracy:.2f} %", flush=True)
        # Nobody resumes a finished cell, and optimiser states of hundreds of cells fill a disk.
        for file in (run.last_checkpoint, run.best_checkpoint):
            file.unlink(missing_ok=True)
    return True


@contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone holds the file; the operating system lets go of it when the process ends, however."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def finished(folder: Path) -> bool:
    """Whether a run, or a folder of made images, is complete."""
    return bool(Run(folder).summary) or (folder / "synthesis.json").is_file()


def slug(name: str) -> str:
    """A name as a file may have it."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_")


def command() -> str:
    return shlex.join(["python", *sys.argv])
