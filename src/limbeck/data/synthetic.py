"""Folders that `limbeck synthesize` wrote: images made for a teacher, labelled with its own answers.

What is in one is written by `limbeck.synthesis.bank`. Nothing is held out of such images: on them, a student's accuracy
would only say how well it agrees with its teacher on pictures that neither was ever meant for.
"""

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from limbeck.data.base import DataSet
from limbeck.data.folder import FolderSource
from limbeck.data.names import SYNTHESIS_FILE
from limbeck.errors import UserError

FORMAT_VERSION = 1
"""Of synthesis.json; a reader refuses later ones."""

_NEEDED: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "num_classes": int,
    "class_names": (list, type(None)),
    "size": list,
    "sources": list,
    "teacher": dict,
    "pictures": list,
}


def open_synthetic(path: Path) -> DataSet:
    """Open a folder of images that were made for a classifier.

    Args:
        path: holds synthesis.json and the images that it lists.

    Returns:
        All images as `train`, with the teacher's answers as labels, by source as `groups` where there are several; no
        `val`. Classes without a name are called by their numbers.

    Raises:
        UserError: the record is damaged, of a detector or of a later version, or images that it lists are gone.
    """
    record, digest = _read_record(path)
    pictures = record["pictures"]
    files = [row["file"] for row in pictures]
    if gone := [file for file in files if not (path / file).is_file()]:
        raise UserError(
            f"{len(gone)} of {len(files)} images that {path / SYNTHESIS_FILE} lists are missing, the first is {gone[0]}. Copy "
            f"the folder again; or, if they were removed on purpose, name {path / 'images'} to use those that are there as "
            "class folders."
        )
    num_classes = record["num_classes"]
    source = FolderSource(path, files, np.array([row["label"] for row in pictures], dtype=np.int64))
    made_by = np.array([row["source"] for row in pictures], dtype=np.int64)
    if len(np.unique(made_by)) > 1:
        source.groups = made_by
    names = record["class_names"] or [str(label) for label in range(num_classes)]
    ways = [str(one["text"]) for one in record["sources"]]
    teacher = record["teacher"].get("name", "an unnamed teacher")
    height, width = record["size"]
    return DataSet(
        str(path),
        source,
        None,
        tuple(str(name) for name in names),
        (int(height), int(width)),
        {
            "kind": "synthetic",
            "split": "none",
            "labels": "the teacher's answers",
            "sources": ways,
            "teacher": record["teacher"],
            "synthesis_sha256": digest,
        },
        [f"{path} holds {len(files)} images that {' + '.join(ways)} made for {teacher}; their labels are its answers."],
        labels_by_teacher=True,
    )


def _read_record(path: Path) -> tuple[dict[str, Any], str]:
    """What synthesis.json says, checked as far as it is used here, and the file's SHA-256."""
    file = path / SYNTHESIS_FILE
    content = file.read_bytes()
    try:
        record = json.loads(content)
    except ValueError as error:
        raise _damaged(file, f"it is no readable JSON ({error})") from None
    if not isinstance(record, dict):
        raise _damaged(file, "it is no JSON object")
    if record.get("task") == "detection":
        raise UserError(f"{path} holds scenes that were made for a detector. Use them with --task detection.")
    if not isinstance(version := record.get("format_version"), int):
        raise _damaged(file, "it has no format_version")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{file} has format {version}, and this version of Limbeck knows formats up to {FORMAT_VERSION}. Use the version "
            "that wrote it, or a later one."
        )
    for key, kind in _NEEDED.items():
        if not isinstance(record.get(key, ...), kind):
            raise _damaged(file, f"{key} is missing or no {_words(kind)}")
    _check_values(record, file)
    return record, hashlib.sha256(content).hexdigest()


def _check_values(record: dict[str, Any], file: Path) -> None:
    num_classes, names = record["num_classes"], record["class_names"]
    if names is not None and len(names) != num_classes:
        raise _damaged(file, f"it names {len(names)} of {num_classes} classes")
    if len(record["size"]) != 2 or not all(isinstance(one, dict) and "text" in one for one in record["sources"]):
        raise _damaged(file, "size or sources are not as they are written")
    if not record["pictures"]:
        raise _damaged(file, "it lists no images")
    for row in record["pictures"]:
        if not isinstance(row, dict) or not isinstance(row.get("file"), str) or not isinstance(row.get("source"), int):
            raise _damaged(file, f"an image is listed as {row}")
        inside = PurePosixPath(row["file"])
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(f"{file} lists an image outside its folder ({row['file']}); it is not opened.")
        if not isinstance(label := row.get("label"), int) or not 0 <= label < num_classes:
            raise _damaged(file, f"the label of {row['file']} is {label}, not 0 to {num_classes - 1}")


def _damaged(file: Path, cause: str) -> UserError:
    return UserError(f"{file} is damaged: {cause}. Copy the folder again, or make it again with limbeck synthesize.")


def _words(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = {str: "text", int: "whole number", list: "list", dict: "object", type(None): "null"}
    return " or ".join(names[one] for one in kinds)
