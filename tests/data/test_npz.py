"""An .npz file gives back the very pixels, or an error that names the key."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data.door import open_data
from limbeck.errors import UserError


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    base = {
        "train_x": rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "train_y": np.array([0, 1, 2, 0, 1, 2]),
        "test_x": rng.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8),
        "test_y": np.array([2, 1, 0], dtype=np.uint8),
        "class_names": np.array(["ant", "bee", "cow"]),
    } | changes
    return {key: value for key, value in base.items() if value is not None}


def write(folder: Path, **changes: Any) -> str:
    np.savez(folder / "set.npz", **arrays(**changes))
    return str(folder / "set.npz")


def test_round_trip(tmp_path: Path) -> None:
    data, given = open_data(write(tmp_path)), arrays()
    assert data.val is not None
    for source, x, y in ((data.train, "train_x", "train_y"), (data.val, "test_x", "test_y")):
        np.testing.assert_array_equal(np.stack([np.asarray(source.read(i)) for i in range(len(source))]), given[x])
        assert source.labels is not None
        assert source.labels.dtype == np.int64
        assert source.labels.tolist() == given[y].tolist()
    assert data.class_names == ("ant", "bee", "cow")
    assert data.native_size == (5, 4)
    assert data.record["split"] == "given"
    assert data.record["class_counts"] == {
        "train": {"ant": 2, "bee": 2, "cow": 2},
        "val": {"ant": 1, "bee": 1, "cow": 1},
    }


def test_grey_images_column_labels_and_no_names(tmp_path: Path) -> None:
    grey = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
    data = open_data(write(tmp_path, train_x=grey, train_y=np.array([[0], [1], [3], [0], [1], [3]]), class_names=None))
    assert np.asarray(data.train.read(2)).tolist() == [[[8] * 3, [9] * 3], [[10] * 3, [11] * 3]]
    assert data.class_names == ("0", "1", "2", "3")
    assert any("no class_names" in note for note in data.notes)
    assert any("1 classes have no training image: 2" in note for note in data.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_y": None}, r"set\.npz lacks test_y \(it has train_x, train_y, test_x, class_names\)"),
        ({"train_x": np.zeros((6, 5, 4, 3), np.float32)}, r"train_x of .*set\.npz is float32; images must be uint8"),
        ({"train_x": np.zeros((6, 3, 5, 4), np.uint8)}, r"train_x of .*\(6, 3, 5, 4\).*transpose"),
        ({"train_x": np.zeros((6, 20), np.uint8)}, r"train_x of .*\(6, 20\)"),
        ({"train_x": np.zeros((0, 5, 4), np.uint8), "train_y": np.zeros(0, int)}, r"train_x of .*at least one"),
        ({"train_y": np.zeros(6)}, r"train_y of .*is float64; labels must be integers"),
        ({"train_y": np.zeros((6, 3), int)}, r"train_y of .*shape \(6, 3\)"),
        ({"train_y": np.zeros(5, int)}, r"6 images in train_x but 5 labels"),
        (
            {"train_y": np.array([0, 1, 2, 0, -1, 2])},
            r"1 training labels are not between 0 and 2.*is -1, of set\.npz train_x\[4\]",
        ),
        (
            {"test_y": np.array([0, 3, 1])},
            r"1 validation labels are not between 0 and 2.*is 3, of set\.npz test_x\[1\]",
        ),
        ({"class_names": np.array(["a", "b", "a"])}, r"names a class twice"),
        ({"class_names": np.array([1, 2, 3])}, r"class_names of .*strings"),
        (
            {"class_names": np.array(["a", None, 3], dtype=object)},
            r"set\.npz holds arrays of Python objects.*may run code",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_data(write(tmp_path, **changes))


def test_damaged_files(tmp_path: Path) -> None:
    path = Path(write(tmp_path))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"set\.npz is damaged or no \.npz"):
        open_data(str(path))
    path.write_bytes(content.replace(arrays()["train_x"].tobytes()[:40], bytes(40)))
    with pytest.raises(UserError, match=r"set\.npz is damaged"):
        open_data(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", b"not an array")
    with pytest.raises(UserError, match=r"set\.npz is damaged \(train_x is not an array\)"):
        open_data(str(path))
