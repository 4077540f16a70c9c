"""A folder that `limbeck synthesize` wrote is opened as it is, and one that is damaged says how."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.data.door import open_data
from limbeck.data.names import PARTIAL_FILE, SYNTHESIS_FILE, check_data_name
from limbeck.errors import UserError


def record(**changes: Any) -> dict[str, Any]:
    labels = [0, 2, 2, 0, 2, 0]
    pictures = [{"file": f"images/{y}/{i:06d}.png", "label": y, "source": i % 2} for i, y in enumerate(labels)]
    return {
        "format_version": 1,
        "task": "classification",
        "num_classes": 3,
        "class_names": ["maple/tree", "äpfel 🍎", "dog"],
        "size": [4, 6],
        "sources": [{"text": "invert"}, {"text": "noise"}],
        "teacher": {"name": "runs/teacher", "licence": "MIT"},
        "pictures": pictures,
        **changes,
    }


def folder(path: Path, **changes: Any) -> str:
    """A folder as it is written, whose record has these values instead."""
    for number, row in enumerate(record()["pictures"]):
        (path / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number, row["label"], 7)).save(path / row["file"])
    (path / SYNTHESIS_FILE).write_text(json.dumps(record(**changes)))
    return str(path)


def test_everything_is_learned_from_and_nothing_is_held_out(tmp_path: Path) -> None:
    data = open_data(folder(tmp_path))
    assert data.train.labels is not None and data.train.groups is not None
    assert data.train.labels.tolist() == [0, 2, 2, 0, 2, 0]
    assert data.train.groups.tolist() == [0, 1] * 3
    assert [data.train.read(i).getpixel((0, 0)) for i in range(6)] == [
        (i, y, 7) for i, y in enumerate([0, 2, 2, 0, 2, 0])
    ]
    assert (data.val, data.labels_by_teacher, data.native_size) == (None, True, (4, 6))
    assert data.class_names == ("maple/tree", "äpfel 🍎", "dog")
    assert data.record["class_counts"]["train"] == {"maple/tree": 3, "äpfel 🍎": 0, "dog": 3}
    assert (data.record["kind"], data.record["split"], data.record["val_images"]) == ("synthetic", "none", 0)
    assert any("6 images that invert + noise made for runs/teacher" in note for note in data.notes)
    assert any("--val_data" in note for note in data.notes)


def test_other_data_is_not_labelled_by_a_teacher() -> None:
    assert not open_data("digits").labels_by_teacher
    assert open_data("digits").train.groups is None


def test_nameless_classes_and_a_single_source(tmp_path: Path) -> None:
    rows = [{**row, "source": 0} for row in record()["pictures"]]
    data = open_data(folder(tmp_path, class_names=None, pictures=rows))
    assert data.class_names == ("0", "1", "2")
    assert data.train.groups is None


def test_a_subset_keeps_labels_and_sources(tmp_path: Path) -> None:
    data = open_data(folder(tmp_path), max_train_images=4)
    assert data.train.labels is not None and data.train.groups is not None
    assert np.bincount(data.train.labels).tolist() == [2, 0, 2]
    for index in range(4):
        number, label, _ = data.train.read(index).getpixel((0, 0))  # type: ignore[misc]
        assert (number % 2, label) == (data.train.groups[index], data.train.labels[index])


def test_the_kind_is_told_by_the_record(tmp_path: Path) -> None:
    assert check_data_name(folder(tmp_path / "whole")) == "synthetic"
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / PARTIAL_FILE).touch()
    with pytest.raises(UserError, match=r"not finished: limbeck synthesize was stopped. Run the same .* --resume"):
        check_data_name(str(tmp_path / "begun"))
    (tmp_path / "whole" / PARTIAL_FILE).touch()  # stopped between the record and the last cleaning up
    assert check_data_name(str(tmp_path / "whole")) == "synthetic"


def changed_row(**changes: Any) -> dict[str, Any]:
    rows = record()["pictures"]
    return {"pictures": [rows[0], {**rows[1], **changes}, *rows[2:]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "has format 2, and this version of Limbeck knows formats up to 1"),
        ({"format_version": None}, "is damaged: it has no format_version"),
        ({"task": "detection"}, "scenes that were made for a detector. Use them with --task detection"),
        ({"task": "detection", "format_version": None}, "Use them with --task detection"),
        ({"pictures": []}, "is damaged: it lists no images"),
        ({"num_classes": "3"}, "num_classes is missing or no whole number"),
        ({"class_names": ["a", "b"]}, "it names 2 of 3 classes"),
        ({"size": [4]}, "size or sources are not as they are written"),
        (changed_row(label=3), r"the label of images/2/000001\.png is 3, not 0 to 2"),
        (changed_row(label=None), "is None, not 0 to 2"),
        (changed_row(source="x"), "an image is listed as"),
        (changed_row(file="../../etc/passwd"), r"lists an image outside its folder \(\.\./\.\./etc/passwd\)"),
        (changed_row(file="/etc/passwd"), r"lists an image outside its folder"),
        (
            changed_row(file="images/0/gone.png"),
            r"1 of 6 images that .* lists are missing, the first is images/0/gone\.png",
        ),
    ],
)
def test_damaged_records_say_what_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_data(folder(tmp_path, **changes))


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"format_version": 1, "task"'])
def test_a_record_that_is_no_record(tmp_path: Path, content: str) -> None:
    folder(tmp_path)
    (tmp_path / SYNTHESIS_FILE).write_text(content)
    with pytest.raises(UserError, match=r"synthesis\.json is damaged.*make it again with limbeck synthesize"):
        open_data(str(tmp_path))
