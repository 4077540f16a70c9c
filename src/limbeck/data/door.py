"""The one door to data: a name becomes a `DataSet`, split, checked and recorded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from limbeck.data.base import DataSet, ImageSource
from limbeck.data.decode import BadImageError, find_bad_images
from limbeck.data.digits import open_digits
from limbeck.data.folder import open_folder
from limbeck.data.names import DataKind, check_data_name
from limbeck.data.npz import open_npz
from limbeck.data.parquet import open_hub, open_parquet
from limbeck.data.split import SubsetSource, random_subset, stratified_split
from limbeck.errors import UserError


def open_data(
    name: str,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    bad_images: Literal["stop", "skip"] = "stop",
    max_train_images: int | None = None,
) -> DataSet:
    """Open a data set by its name.

    Args:
        name: digits | a folder | FILE.npz | FILE.parquet or a folder of parquet files | hf:NAME.
        val_fraction: share of each class to hold out where the data gives no split, between 0 and 1.
        seed: of that split and of `max_train_images`.
        bad_images: "stop" raises `BadImageError` when such an image is read; "skip" decodes every image once now and
            leaves out what cannot be decoded, counted in the notes and listed in the record.
        max_train_images: learn from a stratified random subset of this size; all images where there are fewer.

    Returns:
        The data set; its record is plain values for a JSON or YAML file.

    Raises:
        DataNotFoundError: (a UserError and a FileNotFoundError) nothing has this name.
        UserError: the data cannot be used; the message says why and what to do.
        MissingExtraError: parquet and hub data need `datasets`.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must be between 0 and 1, both excluded.")
    kind = check_data_name(name)
    path = Path(name).expanduser()
    openers: dict[DataKind, Callable[[], DataSet]] = {
        "digits": open_digits,
        "npz": lambda: open_npz(path),
        "folder": lambda: open_folder(path),
        "parquet": lambda: open_parquet(path),
        "hub": lambda: open_hub(name),
    }
    data = openers[kind]()
    data.name = name
    _check_labels(data)
    if bad_images == "skip" and kind != "digits":
        _skip_bad_images(data)
    if data.labelled and data.val is None:
        _make_split(data, val_fraction, seed)
    if data.record["split"] == "made":
        data.record["val_files"] = _names(data.val, data.name)
    if max_train_images is not None:
        _take_subset(data, max_train_images, seed)
    _describe(data)
    return data


def _check_labels(data: DataSet) -> None:
    for split, source in (("training", data.train), ("validation", data.val)):
        if source is None or source.labels is None:
            continue
        names = data.class_names or ()
        wrong = np.flatnonzero((source.labels < 0) | (source.labels >= len(names)))
        if len(wrong):
            raise UserError(
                f"{data.name}: {len(wrong)} {split} labels are not between 0 and {len(names) - 1} (there are "
                f"{len(names)} classes); the first is {source.labels[wrong[0]]}, of {source.describe(int(wrong[0]))}. "
                "Correct the labels or the class names."
            )


def _skip_bad_images(data: DataSet) -> None:
    listed: list[dict[str, str]] = []
    data.train, bad = _without_bad(data.train)
    listed += bad
    if data.val is not None:
        data.val, bad = _without_bad(data.val)
        listed += bad
    data.record["bad_images"] = listed
    if listed:
        shown = ", ".join(entry["file"] for entry in listed[:5]) + (" ..." if len(listed) > 5 else "")
        data.notes.append(f"{len(listed)} images cannot be decoded and are left out: {shown}")


def _without_bad(source: ImageSource) -> tuple[ImageSource, list[dict[str, str]]]:
    bad = find_bad_images(source)
    if not bad:
        return source, []
    listed = [{"file": source.describe(index), "cause": cause} for index, cause in sorted(bad.items())]
    good = np.setdiff1d(np.arange(len(source), dtype=np.int64), np.array(list(bad), dtype=np.int64))
    if len(good) == 0:
        raise UserError(f"Not one of {len(source)} images can be decoded. The first: {listed[0]['cause']}")
    kept = SubsetSource(source, good)
    if source.labels is not None and kept.labels is not None:
        emptied = np.setdiff1d(source.labels, kept.labels)
        if len(emptied):
            first = int(np.flatnonzero(source.labels == emptied[0])[0])
            raise UserError(
                f"No image of {len(emptied)} class(es) can be decoded, so they would be empty. The first: {bad[first]}"
            )
    return kept, listed


def _make_split(data: DataSet, val_fraction: float, seed: int) -> None:
    whole = data.train
    assert whole.labels is not None
    assert data.class_names is not None
    train, val, notes = stratified_split(whole.labels, val_fraction, seed, data.class_names)
    data.train, data.val = SubsetSource(whole, train), SubsetSource(whole, val)
    data.record |= {"split": "made", "seed": seed, "val_fraction": val_fraction}
    data.notes += [f"{len(val)} of {len(whole)} images are held out for validation (stratified, seed {seed}).", *notes]


def _take_subset(data: DataSet, size: int, seed: int) -> None:
    total = len(data.train)
    if size >= total:
        return
    data.train = SubsetSource(data.train, random_subset(data.train.labels, size, total, seed))
    data.record["max_train_images"] = {"size": size, "of": total, "seed": seed}
    data.notes.append(f"Learning from {size} of {total} training images (stratified, seed {seed}).")


def _describe(data: DataSet) -> None:
    """Fill in what depends on the final choice of images: counts and the median size."""
    record = data.record
    record["train_images"] = len(data.train)
    record["val_images"] = 0 if data.val is None else len(data.val)
    if data.class_names is not None:
        splits = {"train": data.train, "val": data.val}
        counts = {
            key: _class_counts(s, data.class_names)
            for key, s in splits.items()
            if s is not None and s.labels is not None
        }
        record["class_counts"] = counts
        if unseen := [name for name, count in counts.get("train", {}).items() if count == 0]:
            data.notes.append(f"{len(unseen)} classes have no training image: {', '.join(unseen[:5])}.")
    data.native_size = _median_size(data.train)
    record["native_size"] = list(data.native_size)


def _class_counts(source: ImageSource, class_names: Sequence[str]) -> dict[str, int]:
    counts: Any = np.bincount(source.labels, minlength=len(class_names))  # type: ignore[arg-type]
    return {name: int(count) for name, count in zip(class_names, counts, strict=True)}


def _median_size(source: ImageSource, samples: int = 32) -> tuple[int, int]:
    sizes, first_error = [], None
    for index in np.unique(np.linspace(0, len(source) - 1, samples).astype(int)):
        try:
            sizes.append(source.read(int(index)).size)
        except BadImageError as error:
            first_error = first_error or error
    if not sizes and first_error is not None:
        raise first_error
    width, height = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def _names(source: ImageSource | None, root: str) -> list[str]:
    names = [] if source is None else [source.describe(index) for index in range(len(source))]
    prefix = str(Path(root).expanduser()) + "/"
    return [name.removeprefix(prefix) for name in names]
