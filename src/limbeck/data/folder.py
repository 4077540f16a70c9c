"""Folders of images: class folders, with or without a given split, and unlabelled images.

What a folder means:

* `train/` beside `val/` (or valid, validation, test): a given split, class folders in both.
* images directly in it, or all in a single subfolder: unlabelled images.
* two or more subfolders: class folders, whose images may lie in subfolders of their own.

Hidden files and files without the extension of an image are ignored and counted. Classes are numbered in the sorted
order of their folders' names, as torchvision's ImageFolder does.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limbeck.data.base import DataSet, ImageSource
from limbeck.data.decode import EXTENSIONS, read_image
from limbeck.errors import UserError

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")


class FolderSource(ImageSource):
    """Image files under one folder.

    Args:
        root: the folder.
        files: paths relative to it.
        labels: (N,) int64, or None.
    """

    def __init__(self, root: Path, files: Sequence[str], labels: NDArray[np.int64] | None) -> None:
        self.root = str(root)
        # One array instead of a million strings: quick to send to worker processes, and not copied page by page
        # when they count references.
        self._files = np.array([os.fsencode(file) for file in files])
        self.labels = labels

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB, upright."""
        return read_image(self.describe(index))

    def describe(self, index: int) -> str:
        """The path of the file."""
        return os.path.join(self.root, os.fsdecode(self._files[index]))


def open_folder(path: Path) -> DataSet:
    """Open a folder of images; `val` is None where the folder gives no split.

    Raises:
        UserError: no images, an empty class, or a layout with no clear meaning.
    """
    tally = _Ignored()
    folders = _subfolders(path)
    by_name = {name.lower(): name for name in folders}
    train_name = next((by_name[name] for name in TRAIN_NAMES if name in by_name), None)
    val_names = [by_name[name] for name in VAL_NAMES if name in by_name]
    if train_name is not None and (val_names or len(folders) == 1):
        data = _open_given_split(path, train_name, val_names, tally)
        extra = sorted(set(folders) - {train_name, *val_names[:1]})
        if extra:
            data.notes.append(f"Not used: {', '.join(f'{path / name}/' for name in extra)}.")
    elif folders and len(val_names) == len(folders):
        raise UserError(
            f"{path} has {', '.join(f'{n}/' for n in val_names)} but no train/. Add train/, or name one of these "
            "folders itself."
        )
    else:
        source, class_names = _read_tree(path, tally)
        data = DataSet(str(path), source, None, class_names, (0, 0), {"kind": "folder", "split": "none"})
    if not data.labelled:
        data.notes.append(f"{path} holds no class folders; its {len(data.train)} images are used without labels.")
    data.record["layout"] = "class folders" if data.labelled else "unlabelled images"
    data.record["class_order"] = "sorted folder names"
    data.record["files_sha256"] = _hash_of_list(path, [s for s in (data.train, data.val) if s is not None])
    data.notes.extend(tally.notes())
    return data


def _open_given_split(path: Path, train_name: str, val_names: list[str], tally: "_Ignored") -> DataSet:
    train, class_names = _read_tree(path / train_name, tally)
    record: dict[str, Any] = {"kind": "folder", "split": "none", "train_folder": train_name}
    data = DataSet(str(path), train, None, class_names, (0, 0), record)
    if not val_names:
        return data
    val, val_classes = _read_tree(path / val_names[0], tally)
    record["val_folder"] = val_names[0]
    if val_classes is None and class_names is None:
        data.notes.append(
            f"{path / val_names[0]} holds unlabelled images, on which nothing can be measured; it is not used."
        )
        return data
    if val_classes is None:
        raise UserError(
            f"{path / val_names[0]} has no class folders, unlike {path / train_name}. Sort its images into the "
            "same class folders."
        )
    if class_names is not None and class_names != val_classes:
        only_train, only_val = (
            sorted(set(a) - set(b)) for a, b in ((class_names, val_classes), (val_classes, class_names))
        )
        raise UserError(
            f"{path / train_name} and {path / val_names[0]} have different class folders: only in {train_name}: "
            f"{_some(only_train)}; only in {val_names[0]}: {_some(only_val)}. Make them the same."
        )
    record["split"] = "given"
    data.val, data.class_names = val, val_classes
    return data


def _read_tree(path: Path, tally: "_Ignored") -> tuple[FolderSource, tuple[str, ...] | None]:
    """The images under a folder and the names of its class folders, or None where it has no classes."""
    folders = _subfolders(path)
    loose = [name for name in _files_of(path) if tally.keep(path / name)]
    if not folders or len(folders) == 1:
        files = loose + [f"{name}/{file}" for name in folders for file in _walk(path / name, tally)]
        if not files:
            raise UserError(f"{path} holds no images ({', '.join(sorted(EXTENSIONS))}).")
        if folders and not loose and len(nested := _subfolders(path / folders[0])) > 1:
            raise UserError(
                f"{path} holds the single folder {folders[0]}/, which holds {len(nested)} folders. If those are the "
                f"classes, name {path / folders[0]} instead."
            )
        return FolderSource(path, files, None), None
    trees = {name: [f"{name}/{file}" for file in _walk(path / name, tally)] for name in folders}
    if loose and any(trees.values()):
        raise UserError(
            f"{path} holds both {len(loose)} images ({_some(loose)}) and folders with images ({_some(folders)}). For "
            "class folders, move the loose images into them; for unlabelled images, move all into one folder."
        )
    if loose:
        return FolderSource(path, loose, None), None
    if not any(trees.values()):
        raise UserError(f"{path} and its folders hold no images ({', '.join(sorted(EXTENSIONS))}).")
    if empty := [name for name, files in trees.items() if not files]:
        raise UserError(f"{path} has class folders without any image: {_some(empty)}. Fill them, or remove them.")
    labels = np.repeat(np.arange(len(folders), dtype=np.int64), [len(files) for files in trees.values()])
    return FolderSource(path, [file for files in trees.values() for file in files], labels), tuple(folders)


def list_images(path: Path) -> list[Path]:
    """Image files at any depth below a folder, sorted; hidden files and other kinds are left out."""
    return [path / name for name in _walk(path, _Ignored())]


def _subfolders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".") and e.name != "__MACOSX")


def _files_of(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if not e.is_dir())


def _walk(path: Path, tally: "_Ignored") -> Iterator[str]:
    """Image files below a folder, sorted, relative to it; links to folders are followed, but not in circles."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not name.startswith("."))
        if real not in seen:
            prefix = os.path.relpath(folder, path)
            for name in sorted(files):
                if tally.keep(Path(folder, name)):
                    yield name if prefix == "." else f"{prefix}/{name}"
        seen.add(real)


class _Ignored:
    """Counts the files that are not images by their names."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def keep(self, path: Path) -> bool:
        keep = path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
        if not keep:
            self.files.add(str(path))
        return keep

    def notes(self) -> list[str]:
        if not self.files:
            return []
        return [
            f"{len(self.files)} files are hidden or have no image's extension, and were ignored: "
            f"{_some(sorted(self.files))}."
        ]


def _some(names: Sequence[str], most: int = 5) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _hash_of_list(root: Path, sources: Sequence[ImageSource]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        for index in range(len(source)):
            digest.update(os.fsencode(os.path.relpath(source.describe(index), root)) + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()
