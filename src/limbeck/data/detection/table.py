"""Annotated image files as a few flat arrays: quick to send to worker processes, whatever format they came from."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limbeck.data.decode import BadImageError, read_image
from limbeck.data.detection.base import Objects, SceneSource
from limbeck.data.detection.masks import Segment, mask_problem, segment_area, segment_box
from limbeck.data.detection.problems import Problems

Box = tuple[float, float, float, float]

_ROUNDING = 1e-6  # pixels; sums of shares of the image's sides miss its border by less


class SceneTable(SceneSource):
    """Image files under one folder with their objects; made by `TableBuilder`."""

    def __init__(
        self, root: Path, class_names: tuple[str, ...], images: "list[_Image]", has_masks: bool, has_scores: bool
    ) -> None:
        self.root = str(root)
        self.class_names = class_names
        self.has_masks = has_masks
        # Arrays instead of a million small objects, which every worker would copy page by page when it counts
        # references.
        self._files = np.array([os.fsencode(image.file) for image in images])
        self._ids = np.array([image.image_id for image in images])
        self._sizes = np.array([(image.height, image.width) for image in images], dtype=np.int64).reshape(-1, 2)
        self._starts = np.cumsum([0, *(len(image.rows) for image in images)], dtype=np.int64)
        rows = [row for image in images for row in image.rows]
        self._boxes = np.array([row.box for row in rows], dtype=np.float32).reshape(-1, 4)
        self._labels = np.array([row.label for row in rows], dtype=np.int64)
        self._is_crowd = np.array([row.is_crowd for row in rows], dtype=bool)
        self._area = np.array([row.area for row in rows], dtype=np.float32)
        self._scores = np.array([row.score for row in rows], dtype=np.float32) if has_scores else None
        texts = [json.dumps(row.segment).encode() for row in rows] if has_masks else []
        self._segments = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self._segment_starts = np.cumsum([0, *map(len, texts)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB, upright.

        Raises:
            BadImageError: it cannot be decoded, or its size is not the one that its annotations are for.
        """
        image = read_image(self.describe(index))
        height, width = self.size(index)
        if image.size != (width, height):
            raise BadImageError(
                f"The image {self.describe(index)} has {image.width} x {image.height} pixels (upright, by its EXIF "
                f"orientation), but its annotations are for {width} x {height}. Give the image that was annotated, or "
                "leave such files out with --bad-images skip."
            )
        return image

    def objects(self, index: int) -> Objects:
        """The objects of an image."""
        own = slice(int(self._starts[index]), int(self._starts[index + 1]))
        segments = tuple(self._segment(row) for row in range(own.start, own.stop)) if self.has_masks else None
        # Copies, so that nobody can change the table.
        return Objects(
            self._boxes[own].copy(),
            self._labels[own].copy(),
            self._is_crowd[own].copy(),
            self._area[own].copy(),
            segments,
            None if self._scores is None else self._scores[own].copy(),
        )

    def image_id(self, index: int) -> int | str:
        """As the annotations give it."""
        image_id: int | str = self._ids[index].item()
        return image_id

    def size(self, index: int) -> tuple[int, int]:
        """(height, width)."""
        height, width = self._sizes[index]
        return int(height), int(width)

    def describe(self, index: int) -> str:
        """The path of the file."""
        return os.path.join(self.root, os.fsdecode(self._files[index]))

    def counts(self) -> tuple[NDArray[np.int64], int]:
        """(K,) objects of each class, crowds left out; and the images without any annotation."""
        of_classes = np.bincount(self._labels[~self._is_crowd], minlength=len(self.class_names)).astype(np.int64)
        return of_classes, int((np.diff(self._starts) == 0).sum())

    def _segment(self, row: int) -> Segment:
        text = self._segments[self._segment_starts[row] : self._segment_starts[row + 1]].tobytes()
        segment: Segment = json.loads(text)
        return segment


class TableBuilder:
    """Collects images and objects, checks each object, and makes the table.

    Args:
        root: the images' folder.
        class_names: in label order.
        problems: where bad ones are counted.
    """

    def __init__(self, root: Path, class_names: Sequence[str], problems: Problems) -> None:
        self.root, self.class_names, self.problems = root, tuple(class_names), problems
        self.images: dict[int | str, _Image] = {}
        self.notes: list[str] = []

    def add_image(self, file: str, image_id: int | str, size: tuple[int, int] | None = None) -> bool:
        """Add an image.

        Args:
            file: relative to the folder.
            image_id: its own.
            size: (height, width), or None to read it from the head of the file.

        Returns:
            Whether the file is there and has a size; where not, it is counted among the problems.
        """
        path = self.root / file
        if not path.is_file():
            self.problems.add("missing image", f"image {image_id}: there is no file {path}")
            return False
        if size is None:
            try:
                size = upright_size(path)
            except BadImageError as error:
                self.problems.add("corrupt image", f"image {image_id}: {str(error).rstrip('.')}")
                return False
        self.images[image_id] = _Image(file, image_id, *size)
        return True

    def add_object(
        self,
        image_id: int | str,
        where: str,
        *,
        label: int,
        box: Box | None,
        segment: Any = None,
        is_crowd: bool = False,
        area: float | None = None,
        score: float | None = None,
    ) -> None:
        """Check an object and add it to its image, or count what is wrong with it.

        Args:
            image_id: of an image that was added.
            where: the object as a person finds it.
            label: 0 to K - 1.
            box: x1, y1, x2, y2 in pixels, clipped to the image; None for the box around the mask.
            segment: polygons or RLE; None or an empty list where there is no mask.
            is_crowd: as in `Objects`.
            area: in pixels; None for the mask's, or the box's.
            score: how sure a teacher was of it; None for a true label.
        """
        image = self.images[image_id]
        segment = segment or None
        if segment is not None and (problem := mask_problem(segment, image.height, image.width)):
            self.problems.add(problem[0], f"{where}: {problem[1]}")
            return
        if box is None:
            if segment is None:
                self.problems.add("no box", f"{where}: it has neither a box nor a mask")
                return
            box = segment_box(segment)
        clipped = self._clip(box, where, image)
        if clipped is None:
            return
        if area is None:
            area = segment_area(segment) if segment else (clipped[2] - clipped[0]) * (clipped[3] - clipped[1])
        if not math.isfinite(area) or area < 0:
            self.problems.add("bad area", f"{where}: its area is {area}")
            return
        if score is not None and not 0 <= score <= 1:
            self.problems.add("bad score", f"{where}: its score is {score}, not from 0 to 1")
            return
        image.rows.append(_Row(clipped, label, is_crowd, area, segment, score))

    def build(self) -> SceneTable:
        """The table of all images that were added, in the order in which they were.

        It has masks where every object has one; a crowd without one takes its whole box. It has scores where any
        object has one; the others are then sure.
        """
        rows = [row for image in self.images.values() for row in image.rows]
        single = [row for row in rows if not row.is_crowd]
        without = sum(row.segment is None for row in single)
        has_masks = bool(single) and without == 0
        if has_masks:
            crowds = [row for row in rows if row.segment is None]
            for row in crowds:
                x1, y1, x2, y2 = row.box
                row.segment = [[x1, y1, x1, y2, x2, y2, x2, y1]]
            if crowds:
                self.notes.append(f"{len(crowds)} crowds have no mask; their boxes are taken instead.")
        elif without < len(single):
            self.notes.append(
                f"{without} of {len(single)} objects have no mask, so the set is used for boxes only. Complete or remove "
                "them to use the masks."
            )
        scored = [row for row in single if row.score is not None]
        if scored:
            for row in rows:
                row.score = 1.0 if row.score is None else row.score
            self.notes.append(
                f"{len(scored)} of {len(single)} objects carry a score; they are learned like all others."
            )
        return SceneTable(self.root, self.class_names, list(self.images.values()), has_masks, bool(scored))

    def _clip(self, box: Box, where: str, image: "_Image") -> Box | None:
        shown = f"[{', '.join(f'{value:g}' for value in box)}] (x1, y1, x2, y2)"
        if not all(math.isfinite(value) for value in box):
            self.problems.add("box with NaN or infinity", f"{where}: its box is {shown}")
            return None
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1:
            self.problems.add("box without area", f"{where}: its box {shown} has no area")
            return None
        inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(image.width)), min(y2, float(image.height))
        # In the precision of the table, in which a sliver may have no width.
        sides = np.float32(inside[2]) - np.float32(inside[0]), np.float32(inside[3]) - np.float32(inside[1])
        if min(sides) <= 0:
            self.problems.add(
                "box outside its image",
                f"{where}: its box {shown} lies outside its image of {image.width} x {image.height} pixels",
            )
            return None
        overshoot = max(abs(a - b) for a, b in zip(inside, box, strict=True))
        if overshoot > _ROUNDING:
            self.problems.clip(overshoot)
        return inside


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file as `read_image` gives it, from its head alone.

    Raises:
        BadImageError: the head is none of an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:  # as when decoding, anything may come out of a damaged file
        raise BadImageError(
            f"The image {path} cannot be read: {str(error).rstrip('.') or type(error).__name__}. Download or copy it "
            "again, or leave such files out with --bad-images skip."
        ) from error
    return (width, height) if turned else (height, width)


class _Row:
    __slots__ = ("area", "box", "is_crowd", "label", "score", "segment")

    def __init__(self, box: Box, label: int, is_crowd: bool, area: float, segment: Any, score: float | None) -> None:
        self.box, self.label, self.is_crowd, self.area = box, label, is_crowd, area
        self.segment, self.score = segment, score


class _Image:
    __slots__ = ("file", "height", "image_id", "rows", "width")

    def __init__(self, file: str, image_id: int | str, height: int, width: int) -> None:
        self.file, self.image_id, self.height, self.width = file, image_id, height, width
        self.rows: list[_Row] = []
