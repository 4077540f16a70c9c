"""The names of data, checked cheaply before anything heavy is imported."""

import importlib.util
import os
import re
from itertools import islice
from pathlib import Path
from typing import Literal

from limbeck.errors import MissingExtraError, UserError

DataKind = Literal["digits", "npz", "parquet", "folder", "hub", "synthetic"]

KNOWN_NAMES = (
    "digits, a folder of class folders, a folder of unlabelled images, FILE.npz, FILE.parquet, a folder of parquet "
    "files, hf:NAME, or a folder that limbeck synthesize wrote"
)

SYNTHESIS_FILE = "synthesis.json"
"""In a folder of images that were made for a teacher: what made them. It is written last, so that it marks a whole folder."""

PARTIAL_FILE = "synthesis.partial.jsonl"
"""In such a folder while it is being written: what is finished so far."""


class DataNotFoundError(UserError, FileNotFoundError):
    """No file, folder or built-in set has the given name."""


def check_data_name(text: str) -> DataKind:
    """What kind of data a name means; nothing is opened beyond listing folders.

    Args:
        text: digits | a folder | FILE.npz | FILE.parquet | hf:NAME or hf:NAME:CONFIG.

    Raises:
        DataNotFoundError: (a UserError and a FileNotFoundError) nothing has this name.
        UserError: it exists but is nothing that can be opened, or is not finished.
        MissingExtraError: it needs `datasets`, which is not installed.
    """
    if text == "digits":
        return "digits"
    if text.startswith("hf:"):
        if not re.fullmatch(r"hf:[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", text):
            raise UserError(
                f"Data {text!r} is no name on the Hugging Face hub; write hf:NAME, hf:OWNER/NAME or "
                "hf:OWNER/NAME:CONFIG."
            )
        _require_datasets(text)
        return "hub"
    if not text.strip():
        raise UserError(f"The name of the data is empty. It may be {KNOWN_NAMES}.")
    path = Path(text).expanduser()
    if not path.exists():
        raise DataNotFoundError(
            f"Data {text!r} does not exist: there is no such file or folder. It may be {KNOWN_NAMES}."
        )
    if not os.access(path, os.R_OK):
        raise UserError(
            f"Data {text!r} cannot be read: permission denied. Change its permissions, or run as a user who may read "
            "it."
        )
    kind = _kind_of_folder(path) if path.is_dir() else _kind_of_file(path, text)
    if kind == "parquet":
        _require_datasets(text)
    return kind


def _kind_of_file(path: Path, text: str) -> DataKind:
    kinds: dict[str, DataKind] = {".npz": "npz", ".parquet": "parquet"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"Data {text!r} is a file, but neither .npz nor .parquet. It may be {KNOWN_NAMES}.")
    if path.stat().st_size == 0:
        raise UserError(f"Data file {text} is empty (0 bytes). Copy or download it again.")
    return kind


def _kind_of_folder(path: Path) -> DataKind:
    """A folder of parquet files is told from one of images by the first few files of the first few subfolders."""
    if (path / SYNTHESIS_FILE).is_file():
        return "synthetic"
    if (path / PARTIAL_FILE).is_file():
        raise UserError(
            f"{path} holds synthetic images that are not finished: limbeck synthesize was stopped. Run the same command again "
            "with --resume, and use the folder when it has ended."
        )
    with os.scandir(path) as entries:
        listing = sorted((e for e in islice(entries, 10_000) if not e.name.startswith(".")), key=lambda e: e.name)
    if any(entry.name.lower().endswith(".parquet") for entry in listing):
        return "parquet"
    for folder in [entry for entry in listing if entry.is_dir()][:20]:
        with os.scandir(folder.path) as entries:
            if any(entry.name.lower().endswith(".parquet") for entry in islice(entries, 50)):
                return "parquet"
    return "folder"


def _require_datasets(text: str) -> None:
    try:
        found = importlib.util.find_spec("datasets") is not None
    except ValueError:  # sys.modules holds a placeholder for it
        found = False
    if not found:
        raise MissingExtraError("datasets", "data", f"Data {text!r}")
