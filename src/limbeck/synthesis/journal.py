"""What is finished of a folder that is still being written: one line a batch, added when its files are there.

The first line is the recipe, the others are batches, each flushed to the disk before the next is made. A line that was
cut off, and a batch whose files are gone or have another length, count for nothing, and neither does what follows them.
"""

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.names import PARTIAL_FILE, SYNTHESIS_FILE
from limbeck.errors import UserError
from limbeck.files import NO_SPACE, atomic_write
from limbeck.recipe import differences

IMAGES_FOLDER = "images"
CARD_FILE = "README.md"
SHEET_FILE = "contact_sheet.png"
"""What every folder of made pictures holds beside its record, whatever they were made for."""

Row = dict[str, Any]
"""A picture: file, label, asked, source, name, and bytes, the file's length."""

_FREE = ("name", "source", "licence")  # of a network, which its weights' hash identifies


@dataclass
class Journal:
    """A folder's rows and logits so far.

    Attributes:
        folder: of the pictures.
        recipe: plain values from which the pictures follow.
        rows: a dict for each picture.
        logits: of each batch, (n, K) float32.
        seconds: that the batches took which earlier calls wrote.
    """

    folder: Path
    recipe: dict[str, Any]
    rows: list[Row]
    logits: list[NDArray[np.float32]]
    seconds: float

    @property
    def file(self) -> Path:
        """Where it is kept."""
        return self.folder / PARTIAL_FILE

    def add(self, rows: list[Row], logits: NDArray[np.float32], seconds: float) -> None:
        """Record a batch whose files are written.

        Raises:
            UserError: the disk is full.
        """
        line = json.dumps({"rows": rows, "logits": base64.b64encode(logits.tobytes()).decode(), "seconds": seconds})
        write_or_explain(self.file, line.encode() + b"\n", append=True)
        self.rows += rows
        self.logits.append(logits)

    def remove(self) -> None:
        """The folder is finished."""
        self.file.unlink(missing_ok=True)


def open_journal(folder: Path, recipe: dict[str, Any]) -> Journal:
    """The journal of a folder that an earlier call began with the same recipe, or of a new one.

    Args:
        folder: made where it does not exist.
        recipe: plain values from which the pictures follow.

    Raises:
        UserError: the folder cannot be made, holds something else, or pictures of another recipe.
    """
    recipe = json.loads(json.dumps(recipe))
    journal = Journal(folder, recipe, [], [], 0.0)
    if not journal.file.is_file():
        make_folder(folder)
        if other := sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")):
            raise UserError(
                f"{folder} is not empty (it holds {', '.join(other[:3])}{' and more' if other[3:] else ''}), and no images were "
                "begun in it. Choose another folder, or empty this one."
            )
        with atomic_write(journal.file) as file:
            file.write(json.dumps(recipe).encode() + b"\n")
        return journal
    lines = journal.file.read_bytes().split(b"\n")[:-1]  # what follows the last line's end was cut off
    before = _parse(lines[0] if lines else b"", journal.file)
    require_same(folder, before, recipe)
    kept = len(lines[0]) + 1
    for line in lines[1:]:
        batch = _parse(line, journal.file)
        if not all(is_there(folder / row["file"], row["bytes"]) for row in batch["rows"]):
            break
        journal.rows += batch["rows"]
        logits = np.frombuffer(base64.b64decode(batch["logits"]), dtype=np.float32)
        journal.logits.append(logits.reshape(len(batch["rows"]), -1))
        journal.seconds += batch["seconds"]
        kept += len(line) + 1
    os.truncate(journal.file, kept)
    return journal


def make_folder(folder: Path) -> None:
    """Make a folder for pictures, and those above it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} for the images cannot be made: {error.strerror}. Choose another with --out."
        ) from error


def require_same(folder: Path, before: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Refuse to go on with pictures of another recipe; a network may be called otherwise, or lie elsewhere.

    Args:
        folder: of the pictures.
        before: the recipe with which they were begun.
        recipe: that of now, as it comes back from JSON.

    Raises:
        UserError: they differ; the message names where.
    """
    if changed := differences(_flat(before), _flat(recipe)):
        raise UserError(
            f"{folder} holds images that were begun with another recipe ({'; '.join(changed)}). Give the same options to go on "
            "with them, choose another folder, or empty this one."
        )


def is_of_recipe(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether a folder's pictures, finished or begun, are those of a recipe, or there are none.

    Args:
        folder: of the pictures.
        recipe: plain values from which pictures follow; `sources` holds `text` and `count` of each, of which a finished
            folder's record says more.
    """
    finished, begun = folder / SYNTHESIS_FILE, folder / PARTIAL_FILE
    if finished.is_file():
        record = json.loads(finished.read_bytes())
    elif begun.is_file():
        record = json.loads(begun.read_bytes().partition(b"\n")[0])
    else:
        return True
    kept = {key: record.get(key) for key in recipe}
    kept["sources"] = [{"text": one["text"], "count": one["count"]} for one in record["sources"]]
    return not differences(_flat(kept), _flat(json.loads(json.dumps(recipe))))


def is_there(path: Path, length: int) -> bool:
    """Whether a file is there with so many bytes: one that was being written when the power went has fewer."""
    return path.is_file() and path.stat().st_size == length


def write_or_explain(path: Path, content: bytes, *, append: bool = False) -> None:
    """Write a file as it is, or add to its end and wait until it is on the disk.

    Raises:
        UserError: the disk is full.
    """
    try:
        with path.open("ab" if append else "wb") as file:
            file.write(content)
            if append:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise UserError(
            f"No space to write {path}. The images written before it are kept: free some space and start the same command "
            "again to go on."
        ) from error


def _parse(line: bytes, file: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({error}), so the images cannot be gone on with. Empty the folder, or choose another."
        ) from None
    return value


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by their paths, without what a network is merely called."""
    if isinstance(value, dict) and value:
        inner = {key: one for key, one in value.items() if not ("weights_sha256" in value and key in _FREE)}
        return {
            path: one
            for key, part in inner.items()
            for path, one in _flat(part, f"{name}.{key}" if name else key).items()
        }
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return {path: one for i, part in enumerate(value) for path, one in _flat(part, f"{name}[{i}]").items()}
    return {name: value}
