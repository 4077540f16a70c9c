"""What a format's opener gives to the door: scenes, perhaps without a validation set yet, and how they came about."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.data.detection.base import SceneSource
from limbeck.errors import UserError


@dataclass
class Opened:
    """Scenes as a format's files give them.

    Attributes:
        train: all images, or those to learn from.
        val: None where the files give no split.
        record: kind, split ("given", "made" or "none") and what the format has to say.
        notes: for the user.
    """

    train: SceneSource
    val: SceneSource | None
    record: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def hash_files(files: list[Path], root: Path) -> str:
    """SHA-256 of the names below a folder and the contents of annotation files, in the given order."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not blank, without the spaces around them.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8 ({error}). Save it as UTF-8.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
