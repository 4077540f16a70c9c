"""The images that a run without data made for itself: what they look like, and what was measured of them."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from limbeck.reporting.blocks import Gallery, Picture, Section, Table
from limbeck.reporting.run_reader import RunRecord
from limbeck.reporting.sample_choice import data_uri

PLACES = {
    "synthetic": "made before training",
    "synthetic/samples": "made during training, the last of them",
}
"""Folders in a run's, with what their images are."""

SHEET_SIDE = 1000
"""Pixels to which a contact sheet is reduced."""

WORDS = {
    "pictures": "images",
    "empty_classes": "classes the teacher sees in none",
    "class_balance": "evenness of the classes, 1 at best",
    "confidence": "the teacher's mean confidence",
    "read_as_asked": "share it reads as asked for",
    "similarity": "likeness of pairs, to the teacher",
    "similarity_within_class": "the same within a class",
    "near_duplicates": "share of near-duplicates",
    "roughness": "roughness",
    "boxes": "objects",
    "mean_teacher_score": "the teacher's mean score of the objects",
    "found_again": "share of the objects it finds again",
}


def made_images(run: RunRecord) -> Section | None:
    """Contact sheets and numbers; None of runs that made no images."""
    galleries, columns = [], []
    for place, words in PLACES.items():
        folder = run.path / place
        record = _read(folder / "synthesis.json")
        if record is None:
            continue
        ways = " + ".join(str(source.get("text")) for source in record.get("sources", ()))
        columns.append((words, record.get("quality") or record.get("numbers") or {}))
        sheet = folder / "contact_sheet.png"
        if sheet.is_file():
            with Image.open(sheet) as image:
                picture = Picture(data_uri(image.convert("RGB"), SHEET_SIDE), ways, (words,))
            galleries.append(Gallery(f"Images {words}", [picture], columns=1))
    if not columns:
        return None
    names = [name for name in WORDS if any(_is_number(numbers.get(name)) for _, numbers in columns)]
    rows = [(WORDS[name], *(_show(numbers.get(name)) for _, numbers in columns)) for name in names]
    table = Table(
        ("", *(words for words, _ in columns)),
        rows,
        tuple(range(1, len(columns) + 1)),
        "Each number's meaning stands in the data card, README.md in the same folder.",
    )
    text = [
        "No image of the teacher's data was read: the student learned from these, and from the teacher's answers to them."
    ]
    return Section("made_images", "The images that were made", text=text, table=table, galleries=galleries)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _show(value: Any) -> str:
    return f"{value:.4g}" if _is_number(value) else "–"
