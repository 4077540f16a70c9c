"""Images to measure on may be named apart: which ones they are, and what must agree."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.data.door import open_data, open_validation, open_without_images
from limbeck.data.measured_on import require_same_classes
from limbeck.data.names import SYNTHESIS_FILE
from limbeck.data.npz import ArraySource
from limbeck.errors import UserError


def class_folders(root: Path, **counts: int) -> Path:
    for value, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (6, 4), (value, number, 0)).save(root / name / f"{number:03}.png")
    return root


def synthetic(root: Path) -> str:
    """What `limbeck synthesize` writes, as far as it is read."""
    (root / "images").mkdir(parents=True)
    rows = [{"file": f"images/{number}.png", "label": number % 3, "source": 0} for number in range(6)]
    for row in rows:
        Image.new("RGB", (6, 4)).save(root / str(row["file"]))
    record = {"format_version": 1, "task": "classification", "num_classes": 3, "size": [4, 6], "pictures": rows}
    names = {"class_names": ["maple/tree", "äpfel 🍎", "dog"], "sources": [{"text": "noise"}], "teacher": {"name": "t"}}
    (root / SYNTHESIS_FILE).write_text(json.dumps(record | names))
    return str(root)


def unlabelled(root: Path, count: int = 7) -> Path:
    class_folders(root, pictures=count)
    return root


def test_nothing_is_held_out_and_the_others_held_out_part_is_measured(tmp_path: Path) -> None:
    learned, other = class_folders(tmp_path / "a", ant=20, bee=30), class_folders(tmp_path / "b", ant=10, bee=10)
    data = open_data(str(learned), val_fraction=0.2, seed=5, val_data=str(other))
    alone = open_data(str(other), val_fraction=0.2, seed=5)
    assert data.val is not None and alone.val is not None
    assert len(data.train) == 50
    assert [data.val.describe(i) for i in range(4)] == [alone.val.describe(i) for i in range(len(alone.val))]
    assert data.record["split"] == "val_data"
    assert "val_files" not in data.record and "seed" not in data.record
    assert (data.record["train_images"], data.record["val_images"]) == (50, 4)
    assert data.record["val_data"]["name"] == str(other)
    assert data.record["val_data"]["val_files"] == alone.record["val_files"]
    assert data.record["val_data"]["files_sha256"] == alone.record["files_sha256"]
    assert data.record["class_counts"]["val"] == {"ant": 2, "bee": 2}
    assert any(note == f"Measured on 4 images of {other}." for note in data.notes)


def test_a_given_split_is_measured_and_replaces_the_datas_own(tmp_path: Path) -> None:
    for name, counts in (("train", 9), ("val", 3)):
        class_folders(tmp_path / "a" / name, ant=counts, bee=counts)
        class_folders(tmp_path / "b" / name, ant=counts + 1, bee=counts + 1)
    data = open_data(str(tmp_path / "a"), val_data=str(tmp_path / "b"))
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (18, 8)
    assert data.val.describe(0) == str(tmp_path / "b" / "val" / "ant" / "000.png")
    assert data.record["val_data"]["split"] == "given"


@pytest.mark.parametrize("names", [("val",), ("test",), ("Test",), ("test", "val")])
def test_a_folder_of_nothing_but_val_is_used_whole(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        class_folders(tmp_path / "b" / name, ant=3, bee=1)
    found = open_validation(str(tmp_path / "b"))
    assert (len(found.source), found.class_names) == (4, ("ant", "bee"))
    assert found.record["val_folder"] == names[-1]
    assert found.record["split"] == "given"


def test_digits_are_measured_on_their_own_fifth() -> None:
    found, digits = open_validation("digits"), open_data("digits")
    assert digits.val is not None
    assert len(found.source) == len(digits.val) == 359


def test_unlabelled_images_take_the_class_names_of_those_to_measure_on(tmp_path: Path) -> None:
    other = class_folders(tmp_path / "b", ant=10, bee=10)
    data = open_data(str(unlabelled(tmp_path / "a")), val_data=str(other))
    assert (data.labelled, data.class_names, len(data.train)) == (False, ("ant", "bee"), 7)
    # Names of a val/ of its own are those of images that are not used.
    unlabelled(tmp_path / "c" / "train")
    class_folders(tmp_path / "c" / "val", x=1, y=1, z=1)
    assert open_data(str(tmp_path / "c"), val_data=str(other)).class_names == ("ant", "bee")


def test_synthetic_images_are_measured_on_real_ones(tmp_path: Path) -> None:
    made = synthetic(tmp_path / "made")
    real = class_folders(tmp_path / "real", Maple_Tree=5, Äpfel=5, dog=5)
    with pytest.raises(UserError, match=r"the same classes in another order: class 1 is 'dog' in .* and 'äpfel 🍎' in"):
        open_data(made, val_data=str(real))  # Ä sorts behind d
    np.savez(
        tmp_path / "real.npz",
        train_x=np.zeros((3, 4, 6), np.uint8),
        train_y=np.arange(3),
        test_x=np.zeros((6, 4, 6), np.uint8),
        test_y=np.arange(6) % 3,
        class_names=np.array(["Maple Tree", "ÄPFEL", "dog"]),
    )
    data = open_data(made, val_data=str(tmp_path / "real.npz"))
    assert data.val is not None
    assert (len(data.train), len(data.val), data.labels_by_teacher) == (6, 6, True)
    assert data.class_names == ("maple/tree", "äpfel 🍎", "dog")
    assert not any("--val_data" in note for note in data.notes)
    with pytest.raises(UserError, match=r"made for a teacher and are labelled with its answers.*Give real images"):
        open_data(str(real), val_data=made)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (("a", "b"), ("a", "b", "c"), r"B, have 3 classes, but A has 2"),
        (("a", "b"), ("b", "a"), r"same classes in another order: class 0 is 'b' in B and 'a' in A"),
        (
            ("a", "cat"),
            ("a", "dog"),
            r"other classes: class 1 is 'dog' in B and 'cat' in A. Only in B: dog; only in A: cat",
        ),
        (("🍎", "🍐"), ("🍐", "🍎"), r"another order"),
    ],
)
def test_other_classes_are_refused_with_both_names(
    ours: tuple[str, ...], theirs: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        require_same_classes(ours, theirs, "A", "B")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("a", "b"), ("0", "1")),
        (("0", "1"), ("b", "a")),
        (("maple/tree", "T-shirt"), ("Maple_Tree", "t shirt")),
        (("🍎", "🍐"), ("🍎", "🍐")),
    ],
)
def test_numbers_agree_with_any_names_and_spelling_does_not_count(
    ours: tuple[str, ...], theirs: tuple[str, ...]
) -> None:
    require_same_classes(ours, theirs, "A", "B")


def test_images_without_labels_cannot_be_measured_on(tmp_path: Path) -> None:
    learned = class_folders(tmp_path / "a", ant=4, bee=4)
    with pytest.raises(UserError, match=r"have no labels. Give class folders"):
        open_data(str(learned), val_data=str(unlabelled(tmp_path / "b")))
    unlabelled(tmp_path / "c" / "test")
    with pytest.raises(UserError, match=r"have no labels"):
        open_data(str(learned), val_data=str(tmp_path / "c"))
    with pytest.raises(FileNotFoundError, match=r"no/such"):
        open_data(str(learned), val_data="no/such")


def test_images_that_are_learned_from_cannot_be_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "a", ant=10, bee=10)
    monkeypatch.chdir(tmp_path)
    for val_data in (str(tmp_path / "a"), "./a/../a"):
        with pytest.raises(
            UserError, match=r"2 of 2 images to measure on, .* are also learned from; the first is .*\.png"
        ):
            open_data("a", val_data=val_data)
    for name in ("train", "val"):
        class_folders(tmp_path / "split" / name, ant=3, bee=3)
    data = open_data("split", val_data=str(tmp_path / "split" / "val"), val_fraction=0.4)
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (6, 2)
    assert open_data("split", val_data="split").record["val_images"] == 6


def test_notes_of_the_images_to_measure_on_name_them(tmp_path: Path) -> None:
    learned, other = class_folders(tmp_path / "a", ant=4, bee=4), class_folders(tmp_path / "b", ant=4, bee=4)
    (other / "ant" / "broken.png").write_bytes(b"x")
    data = open_data(str(learned), val_data=str(other), bad_images="skip")
    assert any(note.startswith(f"{other}: 1 images cannot be decoded") for note in data.notes)
    assert data.record["bad_images"] == []
    assert len(data.record["val_data"]["bad_images"]) == 1


def test_training_images_may_come_later(tmp_path: Path) -> None:
    nothing = ArraySource(np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int64), "to come")
    alone = open_without_images(nothing, (8, 8), None)
    assert (alone.val, alone.class_names, alone.record["split"]) == (None, None, "none")
    assert alone.labels_by_teacher and len(alone.train) == 0
    digits = open_without_images(nothing, (8, 8), None, val_data="digits")
    assert digits.val is not None
    assert (len(digits.val), len(digits.class_names or ()), digits.native_size) == (359, 10, (8, 8))
    assert digits.record["val_data"]["name"] == "digits"
    assert digits.notes == ["Measured on 359 images of digits."]
    named = open_without_images(nothing, (8, 8), [f"digit {i}" for i in range(10)], val_data="digits")
    assert named.class_names is not None
    assert named.class_names[3] == "digit 3"
    with pytest.raises(UserError, match=r"digits, have 10 classes, but the teacher has 3"):
        open_without_images(nothing, (8, 8), ["a", "b", "c"], val_data="digits")
