"""What a folder of images means, and what is said about one that means nothing."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.data.decode import BadImageError
from limbeck.data.door import open_data
from limbeck.errors import UserError


def fill(folder: Path, count: int, value: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (6, 4), (value, number, 0)).save(folder / f"{number:03}.png")
    return folder


def class_folders(root: Path, **counts: int) -> Path:
    for value, (name, count) in enumerate(counts.items()):
        fill(root / name, count, value)
    return root


def test_class_folders_are_split_by_class_reproducibly_and_recorded(tmp_path: Path) -> None:
    root = class_folders(tmp_path, zebra=20, ant=10, bee=30)
    data = open_data(str(root), val_fraction=0.2, seed=5)
    assert data.val is not None
    assert data.class_names == ("ant", "bee", "zebra")
    assert data.record["class_counts"] == {
        "train": {"ant": 8, "bee": 24, "zebra": 16},
        "val": {"ant": 2, "bee": 6, "zebra": 4},
    }
    assert (data.record["split"], data.record["seed"], data.record["val_fraction"]) == ("made", 5, 0.2)
    assert data.record["val_files"] == [os.path.relpath(data.val.describe(i), root) for i in range(12)]
    assert data.native_size == (4, 6)
    assert open_data(str(root), val_fraction=0.2, seed=5).record == data.record
    other = open_data(str(root), val_fraction=0.2, seed=6).record
    assert other["val_files"] != data.record["val_files"]
    assert other["files_sha256"] == data.record["files_sha256"]
    fill(root / "ant", 11)
    assert open_data(str(root)).record["files_sha256"] != data.record["files_sha256"]


def test_every_image_has_the_label_of_its_folder(tmp_path: Path) -> None:
    data = open_data(str(class_folders(tmp_path, a=4, b=5, c=6)))
    for source in (data.train, data.val):
        assert source is not None
        assert source.labels is not None
        assert [source.read(i).getpixel((0, 0))[0] for i in range(len(source))] == source.labels.tolist()


@pytest.mark.parametrize("val_name", ["val", "valid", "validation", "test", "Test"])
def test_given_split(tmp_path: Path, val_name: str) -> None:
    class_folders(tmp_path / "train", a=4, b=5)
    class_folders(tmp_path / val_name, a=2, b=1)
    data = open_data(str(tmp_path))
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (9, 3)
    assert data.record["split"] == "given"
    assert "val_files" not in data.record


def test_val_is_preferred_to_test_and_this_is_said(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("val", 2), ("test", 1)):
        class_folders(tmp_path / name, a=count, b=count)
    data = open_data(str(tmp_path))
    assert data.record["val_folder"] == "val"
    assert any(note.startswith("Not used") and "test/" in note for note in data.notes)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert open_data(str(class_folders(tmp_path, bus=3, train=3))).class_names == ("bus", "train")


@pytest.mark.parametrize("nested", ["", "images"])
def test_unlabelled_images(tmp_path: Path, nested: str) -> None:
    fill(tmp_path / nested, 7)
    data = open_data(str(tmp_path))
    assert (len(data.train), data.labelled, data.val, data.class_names) == (7, False, None, None)
    assert data.record["layout"] == "unlabelled images"
    assert any("without labels" in note for note in data.notes)


def test_unlabelled_images_may_be_measured_on_labelled_ones(tmp_path: Path) -> None:
    fill(tmp_path / "train", 7)
    class_folders(tmp_path / "val", a=2, b=1)
    data = open_data(str(tmp_path))
    assert data.val is not None
    assert (data.labelled, len(data.val), data.class_names) == (False, 3, ("a", "b"))


def test_other_files_are_ignored_and_counted(tmp_path: Path) -> None:
    root = class_folders(tmp_path, a=3, b=3)
    for name in (".DS_Store", "a/notes.txt", "b/._000.png"):
        (root / name).write_text("x")
    (root / ".cache").mkdir()
    data = open_data(str(root))
    assert len(data.train) + data.record["val_images"] == 6
    assert any(note.startswith("3 files are hidden") and "notes.txt" in note for note in data.notes)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    root = class_folders(tmp_path, a=3, b=3)
    (root / "a" / "again").symlink_to(root / "a")
    assert open_data(str(root)).record["train_images"] == 4


def test_subset_is_stratified_and_recorded(tmp_path: Path) -> None:
    data = open_data(str(class_folders(tmp_path, a=20, b=40)), max_train_images=9, seed=1)
    assert data.record["class_counts"]["train"] == {"a": 3, "b": 6}
    assert data.record["class_counts"]["val"] == {"a": 2, "b": 4}
    assert data.record["max_train_images"] == {"size": 9, "of": 54, "seed": 1}


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_an_empty_class_is_named(tmp_path: Path, policy: Any) -> None:
    class_folders(tmp_path, a=3, b=3)
    (tmp_path / "dodo").mkdir()
    with pytest.raises(UserError, match="without any image: dodo"):
        open_data(str(tmp_path), bad_images=policy)


def test_different_classes_in_train_and_val_are_listed(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", a=3, b=3, c=3)
    class_folders(tmp_path / "val", a=3, b=3, dodo=3)
    with pytest.raises(UserError, match="only in train: c; only in val: dodo"):
        open_data(str(tmp_path))


def test_layouts_without_a_clear_meaning(tmp_path: Path) -> None:
    class_folders(tmp_path / "mixed", a=3, b=3)
    fill(tmp_path / "mixed", 1)
    with pytest.raises(UserError, match=r"both 1 images \(000\.png\) and folders with images \(a, b\)"):
        open_data(str(tmp_path / "mixed"))
    class_folders(tmp_path / "unzipped" / "inner", a=3, b=3)
    with pytest.raises(UserError, match=r"single folder inner/.*name .*inner instead"):
        open_data(str(tmp_path / "unzipped"))
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="void holds no images"):
        open_data(str(tmp_path / "void"))
    class_folders(tmp_path / "tests" / "test", a=3, b=3)
    with pytest.raises(UserError, match=r"has test/ but no train/"):
        open_data(str(tmp_path / "tests"))


def test_stop_raises_when_the_bad_image_is_read(tmp_path: Path) -> None:
    root = class_folders(tmp_path, a=4, b=4)
    bad = root / "a" / "bad.png"
    bad.write_bytes((root / "a" / "000.png").read_bytes()[:40])
    data = open_data(str(root))
    assert data.val is not None
    sources = [(s, i) for s in (data.train, data.val) for i in range(len(s)) if s.describe(i) == str(bad)]
    assert len(sources) == 1
    with pytest.raises(BadImageError, match=r"a/bad\.png \(40 bytes\)"):
        sources[0][0].read(sources[0][1])


def test_skip_leaves_out_counts_and_lists_bad_images(tmp_path: Path) -> None:
    root = class_folders(tmp_path, a=4, b=4)
    (root / "a" / "bad.png").write_bytes(b"no image")
    (root / "b" / "void.jpg").touch()
    (root / "b" / "dead.jpg").symlink_to(root / "nowhere.jpg")
    data = open_data(str(root), bad_images="skip")
    assert data.val is not None
    assert data.record["class_counts"] == {"train": {"a": 3, "b": 3}, "val": {"a": 1, "b": 1}}
    listed = {os.path.relpath(entry["file"], root): entry["cause"] for entry in data.record["bad_images"]}
    assert set(listed) == {"a/bad.png", "b/void.jpg", "b/dead.jpg"}
    assert "0 bytes" in listed["b/void.jpg"]
    assert any(note.startswith("3 images cannot be decoded") for note in data.notes)
    for source in (data.train, data.val):
        assert all(np.asarray(source.read(i)).shape == (4, 6, 3) for i in range(len(source)))


def test_skip_does_not_empty_a_class_in_silence(tmp_path: Path) -> None:
    class_folders(tmp_path, a=4)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "only.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"would be empty.*only\.png"):
        open_data(str(tmp_path), bad_images="skip")
