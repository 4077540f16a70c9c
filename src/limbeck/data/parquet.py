"""Hugging Face image data sets, from local parquet files or from the hub, through the library `datasets`.

The image column is found by its type, and the label column is the `ClassLabel` (or an integer column called label).
Nothing from a data set's repository is executed: only data files are read.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limbeck.data.base import DataSet, ImageSource
from limbeck.data.decode import BadImageError, decode_image, read_image
from limbeck.errors import MissingExtraError, UserError

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}


class TableSource(ImageSource):
    """The rows of a table with an image column.

    Args:
        table: a `datasets.Dataset`.
        column: of the images, each a dict of `bytes` and `path`.
        labels: (N,) int64, or None.
        name: of the table, for people.
    """

    def __init__(self, table: Any, column: str, labels: NDArray[np.int64] | None, name: str) -> None:
        self.table = table.select_columns([column])
        self.column = column
        self.labels = labels
        self.name = name

    def __len__(self) -> int:
        return len(self.table)

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB, upright."""
        cell = self.table[index][self.column] or {}
        if cell.get("bytes") is not None:
            return decode_image(cell["bytes"], self.describe(index))
        if cell.get("path") and Path(cell["path"]).is_file():
            return read_image(cell["path"])
        raise BadImageError(
            f"{self.describe(index)} holds no image (column {self.column!r} has neither bytes nor an existing path). "
            "Download it again, or leave such rows out with --bad-images skip."
        )

    def describe(self, index: int) -> str:
        """The table and the row."""
        return f"{self.name} row {index}"


def open_parquet(path: Path) -> DataSet:
    """Open one parquet file, or a folder of them whose names tell the splits apart.

    A file belongs to the split whose word stands in its name or its folder's, as in `train-00000-of-00002.parquet` or
    `validation/part-3.parquet`; a file with none of them is a training file.

    Raises:
        MissingExtraError: `datasets` is not installed.
        UserError: a file is damaged, or there is no image column.
    """
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*.parquet") if not f.name.startswith("."))
    groups: dict[str, list[str]] = {}
    for file in files:
        split = "train" if path.is_file() else _split_of(file.relative_to(path))
        groups.setdefault(split, []).append(str(file))
    if empty := [str(file) for file in files if file.stat().st_size == 0]:
        raise UserError(f"Data file {empty[0]} is empty (0 bytes). Copy or download it again.")
    # One split at a time: loaded together, all would silently get the class names of the first.
    tables = {split: _load("parquet", str(path), data_files={split: names})[split] for split, names in groups.items()}
    data = _from_tables(tables, str(path))
    data.record |= {"kind": "parquet", "files": {split: _sizes(names) for split, names in groups.items()}}
    return data


def open_hub(text: str) -> DataSet:
    """Open `hf:NAME` or `hf:NAME:CONFIG` from the Hugging Face hub or its local cache.

    Raises:
        MissingExtraError: `datasets` is not installed.
        UserError: the data set cannot be had, or has no image column.
    """
    name, _, config = text.removeprefix("hf:").partition(":")
    tables = _load(name, text, name=config or None)
    data = _from_tables(tables, text)
    data.record |= {"kind": "hub", "fingerprints": {split: str(table._fingerprint) for split, table in tables.items()}}
    return data


def _load(loader: str, text: str, **options: Any) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "data", f"Data {text!r}") from error
    try:
        return dict(datasets.load_dataset(loader, **options))
    except Exception as error:  # the library raises errors of a dozen others
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(
            f"Data {text!r} cannot be opened: {type(cause).__name__}: {cause}. Check the file or the name; data sets "
            "on the hub need a network, or an earlier download."
        ) from error


def _split_of(path: Path) -> str:
    for part in (path.name, *reversed(path.parts[:-1])):
        words = re.split(r"[^a-z]+", part.lower())
        for split, names in SPLIT_WORDS.items():
            if any(name in words for name in names):
                return split
    return "train"


def _from_tables(tables: dict[str, Any], text: str) -> DataSet:
    if "train" not in tables:
        raise UserError(f"Data {text!r} has no training split (it has {', '.join(tables)}).")
    notes: list[str] = []
    train, class_names = _source(tables["train"], f"{text} train", notes)
    data = DataSet(text, train, None, class_names, (0, 0), {"split": "none"}, notes)
    for split in ("validation", "test"):
        if split not in tables:
            continue
        val, val_classes = _source(tables[split], f"{text} {split}", notes)
        # Test sets whose labels are secret are published with -1 in their place.
        if val.labels is None or (len(val) and (val.labels == -1).all()):
            notes.append(f"{text} {split} has no labels and is not used.")
            continue
        if class_names is not None and val_classes != class_names:
            differing = sorted(set(class_names) ^ set(val_classes or ()))
            raise UserError(
                f"The train and {split} splits of {text} have different classes, or order them differently: "
                f"{', '.join(differing) or 'the names are the same'}. Make them the same."
            )
        data.val, data.class_names = val, val_classes
        data.record |= {"split": "given", "val_split": split}
        break
    return data


def _source(table: Any, name: str, notes: list[str]) -> tuple[TableSource, tuple[str, ...] | None]:
    import datasets

    if len(table) == 0:
        raise UserError(f"{name} has no rows.")
    column = _image_column(table.features, name)
    labels, class_names = None, None
    if (label := _label_column(table.features, name)) is not None:
        values = table.with_format("numpy")[label][:]
        labels = np.asarray([-1 if value is None else value for value in values], dtype=np.int64)
        if isinstance(table.features[label], datasets.ClassLabel):
            class_names = tuple(table.features[label].names)
        else:
            class_names = tuple(str(number) for number in range(int(labels.max()) + 1))
            notes.append(
                f"Column {label!r} of {name} has no class names; the classes are called 0 to {len(class_names) - 1}."
            )
    return TableSource(table.cast_column(column, datasets.Image(decode=False)), column, labels, name), class_names


def _image_column(features: Any, name: str) -> str:
    import datasets

    found = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    if not found:  # written by another library, without the types of `datasets`
        found = [key for key, kind in features.items() if isinstance(kind, dict) and set(kind) == {"bytes", "path"}]
    return _only(found, ("image", "img"), f"image columns in {name}", list(features))


def _label_column(features: Any, name: str) -> str | None:
    import datasets

    found = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not found:
        return next(
            (k for k in ("label", "labels") if getattr(features.get(k), "dtype", "").startswith(("int", "uint"))), None
        )
    return _only(found, ("label", "labels", "fine_label"), f"label columns in {name}", list(features))


def _only(found: list[str], preferred: tuple[str, ...], what: str, columns: list[str]) -> str:
    for key in preferred:
        if key in found:
            return key
    if len(found) != 1:
        raise UserError(
            f"There are {len(found)} {what} ({', '.join(found) or 'none'}; columns: {', '.join(columns)}); exactly one "
            f"is needed, or one called {preferred[0]}."
        )
    return found[0]


def _sizes(names: list[str]) -> dict[str, int]:
    return {Path(name).name: Path(name).stat().st_size for name in names}
