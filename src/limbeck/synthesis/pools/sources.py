"""Images that somebody has, in a folder or a data set, without regard to what they show or are called."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from limbeck.data.base import DataSet, ImageSource
from limbeck.data.decode import EXTENSIONS, BadImageError, find_bad_images
from limbeck.data.door import open_data
from limbeck.data.folder import TRAIN_NAMES, VAL_NAMES, FolderSource, list_images
from limbeck.data.names import check_data_name
from limbeck.data.split import SubsetSource
from limbeck.data.views import View
from limbeck.errors import UserError

BadImages = Literal["stop", "skip"]


@dataclass
class Images:
    """A pool of images.

    Attributes:
        source: the images; labels only where the data has classes.
        root: in front of the images' names, left out of what people read.
        class_names: of the source's labels; None without, and where a network gave them.
        notes: what was left out.
    """

    source: ImageSource
    root: str
    class_names: tuple[str, ...] | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """The image's file in the folder, or its number in the data set."""
        return self.source.describe(index).removeprefix(self.root + os.sep)


def open_images(text: str, bad_images: BadImages) -> Images:
    """Open all images at any depth below a folder, or of any data that can be learned from.

    Of data with a given split only the training images are used, so that nothing is learned from what may be measured on.

    Args:
        text: a folder, or any other name of data.
        bad_images: "stop" leaves images that cannot be decoded to whoever reads them; "skip" decodes every image once
            now and leaves those out.

    Raises:
        UserError: there is no such data, it holds no images, or none of them can be decoded.
        MissingExtraError: parquet and hub data need `datasets`.
    """
    path = Path(text).expanduser()
    if path.is_file() and path.suffix.lower() in EXTENSIONS:
        raise UserError(
            f"images={text!r} is a single image. Name a folder, or use one_image(image={text!r}) for its crops."
        )
    kind = check_data_name(text)
    if kind != "folder":
        data = open_data(text, bad_images=bad_images)
        class_names = None if data.labels_by_teacher else data.class_names
        return Images(_without_made_split(data), data.name, class_names, data.notes)
    images = _open_tree(path)
    if bad_images == "skip":
        bad = find_bad_images(images.source)
        if len(bad) == len(images):
            raise UserError(f"Not one of {len(bad)} images in {text} can be decoded. The first: {bad[0]}")
        if bad:
            good = np.setdiff1d(np.arange(len(images), dtype=np.int64), np.array(list(bad), dtype=np.int64))
            shown = ", ".join(images.name(index) for index in sorted(bad)[:5]) + (" ..." if len(bad) > 5 else "")
            images.notes.append(f"{len(bad)} images of {text} cannot be decoded and are left out: {shown}.")
            images.source = SubsetSource(images.source, good)
    return images


def read_one(source: ImageSource, index: int) -> Image.Image:
    """One image as 8-bit RGB.

    Raises:
        BadImageError: it cannot be decoded; the message says which option leaves such images out.
    """
    try:
        return source.read(index)
    except BadImageError as error:
        raise BadImageError(str(error).replace("with --bad-images skip", "with the option bad_images=skip")) from None


def read_images(source: ImageSource, indices: Iterable[int], view: View) -> list[Tensor]:
    """Some images through a view that draws no random numbers, (3, H, W) in [0, 1] each; read in threads.

    Raises:
        BadImageError: one cannot be decoded.
    """
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        return list(threads.map(lambda index: view(read_one(source, int(index)), 0), indices))


def _without_made_split(data: DataSet) -> ImageSource:
    if data.record["split"] != "made" or data.val is None:
        return data.train
    assert isinstance(data.train, SubsetSource) and isinstance(data.val, SubsetSource)
    return SubsetSource(data.train.source, np.sort(np.concatenate([data.train.indices, data.val.indices])))


def _open_tree(path: Path) -> Images:
    folders = {entry.name.lower(): entry for entry in sorted(path.iterdir()) if entry.is_dir()}
    train = next((folders[name] for name in TRAIN_NAMES if name in folders), None)
    notes = []
    if train is not None and any(name in folders for name in VAL_NAMES):
        notes.append(f"Of {path} only {train.name}/ is used, since it comes with a set to measure on.")
        path = train
    files = [file.relative_to(path).as_posix() for file in list_images(path)]
    if not files:
        raise UserError(
            f"{path} and its folders hold no images ({', '.join(sorted(EXTENSIONS))}). Name a folder of images, "
            "an .npz file, or other data."
        )
    names = sorted({file.split("/")[0] for file in files if "/" in file})
    classes = all("/" in file for file in files) and len(names) > 1
    labels = np.array([names.index(file.split("/")[0]) for file in files], dtype=np.int64) if classes else None
    return Images(FolderSource(path, files, labels), str(path), tuple(names) if classes else None, notes)
