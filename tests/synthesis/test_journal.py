"""Whether a folder's pictures are those of a recipe."""

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.names import PARTIAL_FILE, SYNTHESIS_FILE
from limbeck.synthesis.journal import is_of_recipe

RECIPE: dict[str, Any] = {
    "sources": [{"text": "fast", "count": 20}],
    "teacher": {"name": "runs/a", "weights_sha256": "0123"},
    "size": (32, 32),
}


def write(folder: Path, file: str, recipe: dict[str, Any]) -> None:
    if file == PARTIAL_FILE:
        (folder / file).write_text(json.dumps(recipe) + '\n{"rows": [], "cut o')
    else:
        of_source = {"pictures": 20, "confidence": 0.5}
        record = recipe | {"sources": [one | of_source for one in recipe["sources"]], "seconds": 7.0}
        (folder / file).write_text(json.dumps(record))


def test_no_pictures_are_of_any_recipe(tmp_path: Path) -> None:
    assert is_of_recipe(tmp_path, RECIPE)
    assert is_of_recipe(tmp_path / "not there", RECIPE)


@pytest.mark.parametrize("file", [SYNTHESIS_FILE, PARTIAL_FILE])
def test_pictures_are_of_their_recipe_whatever_else_the_record_says(tmp_path: Path, file: str) -> None:
    write(tmp_path, file, RECIPE)
    assert is_of_recipe(tmp_path, RECIPE)
    moved = {**RECIPE, "teacher": {"name": "elsewhere", "weights_sha256": "0123"}}
    assert is_of_recipe(tmp_path, moved), "the same network under another name"


@pytest.mark.parametrize("file", [SYNTHESIS_FILE, PARTIAL_FILE])
@pytest.mark.parametrize(
    "change",
    [
        {"sources": [{"text": "fast", "count": 21}]},
        {"sources": [{"text": "fast", "count": 20}, {"text": "invert", "count": 1}]},
        {"teacher": {"name": "runs/a", "weights_sha256": "4567"}},
        {"size": (32, 16)},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_pictures_are_not_of_another_recipe(tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    write(tmp_path, file, RECIPE)
    assert not is_of_recipe(tmp_path, RECIPE | change)
