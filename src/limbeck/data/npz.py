"""Images in one `.npz` file: train_x, train_y, test_x, test_y, and class_names where there are any."""

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limbeck.data.base import DataSet, ImageSource
from limbeck.errors import UserError

KEYS = ("train_x", "train_y", "test_x", "test_y")


class ArraySource(ImageSource):
    """Images in memory.

    Args:
        images: (N, H, W) grey or (N, H, W, 3) RGB, uint8.
        labels: (N,) int64.
        name: of the array, for people.
    """

    in_memory = True

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], name: str) -> None:
        self.images = images
        self.labels: NDArray[np.int64] | None = labels
        self.name = name

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB."""
        return Image.fromarray(self.images[index]).convert("RGB")

    def describe(self, index: int) -> str:
        """The array and the number in it."""
        return f"{self.name}[{index}]"


def open_npz(path: Path) -> DataSet:
    """Open an `.npz` file whose test arrays are the validation set.

    Args:
        path: of a file with train_x, test_x: uint8 (N, H, W) grey or (N, H, W, 3) RGB; train_y, test_y: integers (N,)
            or (N, 1); class_names: strings (K,), optional.

    Raises:
        UserError: the file is damaged, lacks a key, or an array is not as described.
    """
    arrays = _load(path)
    if missing := [key for key in KEYS if key not in arrays]:
        raise UserError(
            f"{path} lacks {', '.join(missing)} (it has {', '.join(arrays) or 'nothing'}). Save it with "
            "np.savez(file, train_x=..., train_y=..., test_x=..., test_y=...)."
        )
    sources = {}
    for split in ("train", "test"):
        images = _check_images(arrays[f"{split}_x"], f"{split}_x of {path}")
        labels = _check_labels(arrays[f"{split}_y"], f"{split}_y of {path}")
        if len(images) != len(labels):
            raise UserError(
                f"{path} has {len(images)} images in {split}_x but {len(labels)} labels in {split}_y; they must agree."
            )
        sources[split] = ArraySource(images, labels, f"{path.name} {split}_x")
    notes = []
    if "class_names" in arrays:
        class_names = _check_names(arrays["class_names"], path)
    else:
        num_classes = 1 + max(int(arrays[key].max()) for key in ("train_y", "test_y"))
        class_names = tuple(str(label) for label in range(num_classes))
        notes.append(f"{path.name} has no class_names; the classes are called 0 to {num_classes - 1}.")
    record = {"kind": "npz", "split": "given", "sha256": _file_hash(path)}
    return DataSet(
        str(path), sources["train"], sources["test"], class_names, sources["train"].images.shape[1:3], record, notes
    )


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in (*KEYS, "class_names") if f"{key}.npy" in names}
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is damaged or no .npz file at all ({error}). Copy it again, or save it with np.savez."
        ) from error
    except ValueError as error:
        if "pickle" in str(error):
            raise UserError(
                f"{path} holds arrays of Python objects, which are never loaded since they may run code. Save images "
                "as uint8, labels as integers and class_names as strings (dtype 'U')."
            ) from error
        raise UserError(f"{path} is damaged ({error}). Copy it again, or save it with np.savez.") from error
    except (EOFError, OSError, zlib.error, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}). Copy it again, or save it with np.savez.") from error
    # NumPy gives the bytes of an archive's entry that is not an array.
    if junk := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise UserError(f"{path} is damaged ({junk[0]} is not an array). Copy it again, or save it with np.savez.")
    return arrays


def _check_images(images: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if images.dtype != np.uint8:
        raise UserError(f"{name} is {images.dtype}; images must be uint8, 0 to 255.")
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)) or 0 in images.shape:
        hint = (
            " Move the channels last with np.transpose(x, (0, 2, 3, 1))."
            if images.ndim == 4 and images.shape[1] in (1, 3)
            else ""
        )
        raise UserError(
            f"{name} has shape {images.shape}; images must be (N, H, W) or (N, H, W, 3), and at least one.{hint}"
        )
    return images


def _check_labels(labels: NDArray[Any], name: str) -> NDArray[np.int64]:
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{name} is {labels.dtype}; labels must be integers.")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(f"{name} has shape {labels.shape}; labels must be (N,), one class index for each image.")
    return labels.astype(np.int64)


def _check_names(names: NDArray[Any], path: Path) -> tuple[str, ...]:
    if names.dtype.kind not in "US" or names.ndim != 1:
        raise UserError(
            f"class_names of {path} has dtype {names.dtype} and shape {names.shape}; it must be one row of strings."
        )
    if len(np.unique(names)) < len(names):
        raise UserError(f"class_names of {path} names a class twice; give each its own name.")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
