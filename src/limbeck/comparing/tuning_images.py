"""Images to tune on: some of the training images, a part of them held out, so that no validation image has a say.

They are written as data of their own, which the trials are given instead: as an .npz file where all have one size, else as a
folder of class folders (links to the files where there are files).
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from limbeck.data.base import DataSet, ImageSource
from limbeck.data.split import SubsetSource, random_subset, stratified_split
from limbeck.errors import UserError
from limbeck.files import atomic_write
from limbeck.training.randomness import stable_seed

HELD_OUT = 0.25

# As many as decide between two trials by about two points; more are never measured on than the comparison itself has.
MOST_HELD_OUT = 2000


def write_tuning_images(data: DataSet, images: int, folder: Path, *, seed: int) -> str | None:
    """Write images to tune on.

    Args:
        data: the comparison's; only its training images are used.
        images: to learn from, at most.
        folder: where they are written.
        seed: of the choice.

    Returns:
        The name of the data; None where it cannot be had: unlabelled images, classes with a single image, or images of several
        sizes whose classes are not in the order of their names, as folders would be.
    """
    if not data.labelled or data.labels_by_teacher or data.train.labels is None or data.class_names is None:
        return None
    whole, names = data.train, data.class_names
    assert whole.labels is not None
    try:
        train, held_out, _ = stratified_split(whole.labels, HELD_OUT, stable_seed("tuning", seed) % 2**32, names)
    except UserError:
        return None
    most = min(MOST_HELD_OUT, max(len(names), len(data.val) if data.val is not None else MOST_HELD_OUT))
    chosen = {"train": _some(whole, train, images, seed), "val": _some(whole, held_out, most, seed)}
    return _write_arrays(chosen, names, folder) or _write_folders(chosen, names, folder)


def _some(source: ImageSource, indices: NDArray[np.int64], most: int, seed: int) -> SubsetSource:
    part = SubsetSource(source, indices)
    if len(part) <= most:
        return part
    assert part.labels is not None
    fewest = len(np.unique(part.labels))
    return SubsetSource(part, random_subset(part.labels, max(most, fewest), len(part), seed))


def _write_arrays(chosen: dict[str, SubsetSource], names: tuple[str, ...], folder: Path) -> str | None:
    arrays: dict[str, NDArray[np.generic]] = {"class_names": np.array(names)}
    size: tuple[int, int] | None = None
    for split, key in (("train", "train"), ("val", "test")):
        source = chosen[split]
        pixels = []
        for index in range(len(source)):
            image = source.read(index)
            if size is not None and image.size != size:
                return None
            size = image.size
            pixels.append(np.asarray(image))
        assert source.labels is not None
        arrays |= {f"{key}_x": np.stack(pixels), f"{key}_y": source.labels}
    file = folder / "images.npz"
    with atomic_write(file) as opened:
        np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
    return str(file)


def _write_folders(chosen: dict[str, SubsetSource], names: tuple[str, ...], folder: Path) -> str | None:
    if list(names) != sorted(names) or any("/" in name or name.startswith(".") for name in names):
        return None
    for split, source in chosen.items():
        assert source.labels is not None
        for index in range(len(source)):
            place = folder / "images" / split / names[source.labels[index]]
            place.mkdir(parents=True, exist_ok=True)
            file = Path(source.describe(index))
            if file.is_file():
                link = place / f"{index}{file.suffix}"
                link.unlink(missing_ok=True)
                os.symlink(file.resolve(), link)
            else:
                source.read(index).save(place / f"{index}.png")
    return str(folder / "images")
