"""A folder of images that nobody has annotated, for a teacher to label."""

from pathlib import Path

from PIL import Image

from limbeck.data.base import ImageSource
from limbeck.data.decode import EXTENSIONS
from limbeck.data.detection.base import Objects, SceneSource, no_objects
from limbeck.data.detection.opened import Opened
from limbeck.data.detection.table import upright_size
from limbeck.data.folder import FolderSource, list_images
from limbeck.errors import UserError


class UnlabelledScenes(SceneSource):
    """Image files under one folder, as scenes of which nothing is known.

    Args:
        images: the files.
        root: the folder.
    """

    class_names: tuple[str, ...] = ()
    has_masks = False

    def __init__(self, images: ImageSource, root: Path) -> None:
        self.images, self.root = images, root

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB, upright."""
        return self.images.read(index)

    def objects(self, index: int) -> Objects:
        """None."""
        return no_objects()

    def image_id(self, index: int) -> str:
        """The path of the file in the folder, with its extension, since a photo.png may lie beside a photo.jpg."""
        return Path(self.describe(index)).relative_to(self.root).as_posix()

    def size(self, index: int) -> tuple[int, int]:
        """(height, width), from the head of the file."""
        return upright_size(Path(self.describe(index)))

    def describe(self, index: int) -> str:
        """The path of the file."""
        return self.images.describe(index)


def open_unlabelled(path: Path) -> Opened:
    """Open all images at any depth below a folder; class folders mean nothing here.

    Raises:
        UserError: there are none.
    """
    files = [file.relative_to(path).as_posix() for file in list_images(path)]
    if not files:
        raise UserError(f"{path} and its folders hold no images ({', '.join(sorted(EXTENSIONS))}).")
    source = UnlabelledScenes(FolderSource(path, files, None), path)
    notes = [f"{path} holds {len(files)} images without boxes; the teacher labels them."]
    return Opened(source, None, {"kind": "images", "split": "none", "images": str(path)}, notes)
