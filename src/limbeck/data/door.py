"""The one door to data: a name becomes a `DataSet`, split, checked and recorded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from limbeck.data.base import DataSet, ImageSource
from limbeck.data.decode import BadImageError, find_bad_images
from limbeck.data.digits import open_digits
from limbeck.data.folder import open_folder
from limbeck.data.measured_on import are_numbers, lone_val_folder, require_same_classes, require_unseen
from limbeck.data.names import DataKind, check_data_name
from limbeck.data.npz import open_npz
from limbeck.data.parquet import open_hub, open_parquet
from limbeck.data.split import SubsetSource, random_subset, stratified_split
from limbeck.data.synthetic import open_synthetic
from limbeck.errors import UserError

BadImages = Literal["stop", "skip"]


def open_data(
    name: str,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    bad_images: BadImages = "stop",
    max_train_images: int | None = None,
    val_data: str | None = None,
) -> DataSet:
    """Open a data set by its name.

    Args:
        name: digits | a folder | FILE.npz | FILE.parquet or a folder of parquet files | hf:NAME.
        val_fraction: share of each class to hold out where the data gives no split, between 0 and 1. Nothing is held out of
            images that were made for a teacher.
        seed: of that split and of `max_train_images`.
        bad_images: "stop" raises `BadImageError` when such an image is read; "skip" decodes every image once now and
            leaves out what cannot be decoded, counted in the notes and listed in the record.
        max_train_images: learn from a stratified random subset of this size; all images where there are fewer.
        val_data: the name of other data to measure on; see `open_validation`. Nothing is then held out, and validation images
            that the data gives itself are not used.

    Returns:
        The data set; its record is plain values for a JSON or YAML file.

    Raises:
        DataNotFoundError: (a UserError and a FileNotFoundError) nothing has this name.
        UserError: the data cannot be used; the message says why and what to do.
        MissingExtraError: parquet and hub data need `datasets`.
    """
    data = _open(name, val_fraction, bad_images)
    if val_data is not None:
        if not data.labelled:  # the names are those of its own validation images, which are not used
            data.class_names = None
        _measure_on(data, open_validation(val_data, data.class_names, name, val_fraction, seed, bad_images))
    elif data.labels_by_teacher:
        data.notes.append("None of these images is held out. Name labelled images to measure on with --val_data.")
    elif data.labelled and data.val is None:
        _make_split(data, val_fraction, seed)
    if data.record["split"] == "made":
        data.record["val_files"] = _names(data.val, data.name)
    if max_train_images is not None:
        _take_subset(data, max_train_images, seed)
    data.native_size = median_size(data.train)
    _describe(data)
    return data


@dataclass
class Validation:
    """Labelled images to measure on.

    Attributes:
        source: the images.
        class_names: in label order.
        record: how they came about, plain values.
        notes: what the user should know.
    """

    source: ImageSource
    class_names: tuple[str, ...]
    record: dict[str, Any]
    notes: list[str]


def open_validation(
    name: str,
    class_names: Sequence[str] | None = None,
    learned: str = "the teacher",
    val_fraction: float = 0.1,
    seed: int = 0,
    bad_images: BadImages = "stop",
) -> Validation:
    """Open labelled images to measure on: the validation images of some data.

    They are those of its own split; where it has none, those that `open_data` with the same `val_fraction` and `seed` would
    hold out. A folder that holds nothing but val/ (or valid, validation, test) is used whole.

    Args:
        name: as for `open_data`.
        class_names: of what is learned, in label order, which these images' classes must be (see `require_same_classes`);
            None where nobody knows.
        learned: what has those classes, for messages.
        val_fraction, seed, bad_images: as for `open_data`.

    Raises:
        DataNotFoundError: (a UserError and a FileNotFoundError) nothing has this name.
        UserError: it has no images labelled by people, or other classes.
        MissingExtraError: parquet and hub data need `datasets`.
    """
    lone = lone_val_folder(Path(name).expanduser())
    data = _open(name if lone is None else str(lone), val_fraction, bad_images)
    if data.labels_by_teacher:
        raise UserError(
            f"The images to measure on, {name}, were made for a teacher and are labelled with its answers, which says nothing "
            "about what a network is good for. Give real images that people labelled."
        )
    if lone is not None and data.labelled:
        data.val, data.record["split"], data.record["val_folder"] = data.train, "given", lone.name
    elif data.labelled and data.val is None:
        _make_split(data, val_fraction, seed)
    if data.val is None or data.class_names is None:
        raise UserError(
            f"The images to measure on, {name}, have no labels. Give class folders, or a folder with val/ of class folders."
        )
    if class_names is not None:
        require_same_classes(class_names, data.class_names, learned, name)
    record = {"name": name, **data.record}
    if record["split"] == "made":
        record["val_files"] = _names(data.val, name)
    notes = [f"Measured on {len(data.val)} images of {name}.", *(f"{name}: {note}" for note in data.notes)]
    return Validation(data.val, data.class_names, record, notes)


def open_without_images(
    train: ImageSource,
    size: tuple[int, int],
    class_names: Sequence[str] | None,
    *,
    val_data: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    bad_images: BadImages = "stop",
) -> DataSet:
    """A data set for training images that are made while one learns.

    Args:
        train: the place of the images to come; it may be empty, and its labels are a teacher's answers.
        size: (height, width) in pixels that they will have.
        class_names: of the teacher, in label order; None where nobody recorded any: then those of `val_data`.
        val_data, val_fraction, seed, bad_images: as for `open_data`; `val` is None without `val_data`.

    Raises:
        UserError: `val_data` cannot be measured on, as for `open_validation`.
    """
    names = None if class_names is None else tuple(class_names)
    record: dict[str, Any] = {"kind": "none", "split": "none"}
    data = DataSet("none", train, None, names, size, record, labels_by_teacher=True)
    if val_data is not None:
        _measure_on(data, open_validation(val_data, names, "the teacher", val_fraction, seed, bad_images))
    _describe(data)
    return data


def _open(name: str, val_fraction: float, bad_images: BadImages) -> DataSet:
    """The data as it is found, checked, without a split of our making."""
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
        "synthetic": lambda: open_synthetic(path),
    }
    data = openers[kind]()
    data.name = name
    _check_labels(data)
    if bad_images == "skip" and kind != "digits":
        _skip_bad_images(data)
    return data


def _measure_on(data: DataSet, validation: Validation) -> None:
    require_unseen(data.train, validation.source, validation.record["name"])
    data.val = validation.source
    if data.class_names is None or are_numbers(data.class_names):
        data.class_names = validation.class_names
    data.record |= {"split": "val_data", "val_data": validation.record}
    data.notes += validation.notes


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
    """Record what depends on the final choice of images: counts and the size."""
    record = data.record
    if len(data.train):  # those to come are counted when they are made
        record["train_images"] = len(data.train)
    record["val_images"] = 0 if data.val is None else len(data.val)
    if data.class_names is not None:
        splits = {"train": data.train, "val": data.val}
        counts = {
            key: _class_counts(s, data.class_names)
            for key, s in splits.items()
            if s is not None and s.labels is not None and len(s)
        }
        record["class_counts"] = counts
        unseen = [name for name, count in counts.get("train", {}).items() if count == 0]
        if unseen:
            data.notes.append(f"{len(unseen)} classes have no training image: {', '.join(unseen[:5])}.")
    record["native_size"] = list(data.native_size)


def _class_counts(source: ImageSource, class_names: Sequence[str]) -> dict[str, int]:
    counts: Any = np.bincount(source.labels, minlength=len(class_names))  # type: ignore[arg-type]
    return {name: int(count) for name, count in zip(class_names, counts, strict=True)}


def median_size(source: ImageSource, samples: int = 32) -> tuple[int, int]:
    """(height, width), the median over some images, spread evenly; those that cannot be decoded are left out."""
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
