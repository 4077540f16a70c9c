"""samples/: some validation images of a detection run, reduced, with the masks of what is seen on them.

samples/samples.json lists them: file, number of the image in detections.npz, why it was chosen, and masks as run
lengths at the size of the picture, by the row of the object or detection.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limbeck.data.detection.base import SceneSource
from limbeck.data.detection.masks import decode_rle, encode_rle
from limbeck.files import atomic_write
from limbeck.reporting.detection.choice import Chosen
from limbeck.reporting.detection.stored import StoredDetections, best_first
from limbeck.reporting.drawing import detection_mask
from limbeck.tasks.detection_scores import Detections

FOLDER, FILE = "samples", "samples/samples.json"
SIDE = 480
LOSSLESS_SIDE = 160  # pictures this small are enlarged on the page, which would enlarge JPEG's blocks too


@dataclass(frozen=True)
class SamplePicture:
    """A stored picture.

    Attributes:
        image: RGB.
        number: of the image in detections.npz.
        why: for which reason it was chosen.
        masks: of "truth", "student" and "teacher" by row, (H, W) bool at the picture's size.
    """

    image: Image.Image
    number: int
    why: str
    masks: Mapping[str, Mapping[int, NDArray[np.bool_]]] = field(default_factory=dict)


def write_pictures(
    folder: Path,
    source: SceneSource,
    chosen: Sequence[Chosen],
    stored: StoredDetections,
    found: Mapping[str, Sequence[Detections] | None],
) -> None:
    """Write the chosen images, at most `SIDE` pixels long, and the masks of what is drawn on them.

    Args:
        folder: of the run.
        source: the images.
        chosen: which of them.
        stored: all images' judged detections.
        found: the models' detections by "student" and "teacher".
    """
    place = folder / FOLDER
    records: list[dict[str, Any]] = []
    for one in chosen:
        image = source.read(one.image).convert("RGB")
        height, width = image.height, image.width
        longest = max(image.size)
        if longest > SIDE:
            size = (max(1, round(width * SIDE / longest)), max(1, round(height * SIDE / longest)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        name = f"{one.image:06d}.{'png' if longest <= LOSSLESS_SIDE else 'jpg'}"
        with atomic_write(place / name) as file:
            if name.endswith("png"):
                image.save(file, format="PNG", optimize=True)
            else:
                image.save(file, format="JPEG", quality=88)
        masks: dict[str, dict[str, Any]] = {}
        truth = source.objects(one.image).masks(height, width)
        if truth is not None:
            masks["truth"] = _reduced(dict(enumerate(truth)), image.size)
        for who, model in (("student", stored.student), ("teacher", stored.teacher)):
            detections = found.get(who)
            if model is None or detections is None or detections[one.image].masks is None:
                continue
            rows = best_first(detections[one.image])[: model.images[one.image].shown(model.threshold)]
            masks[who] = _reduced(
                {
                    place: detection_mask(detections[one.image], int(row), height, width)
                    for place, row in enumerate(rows)
                },
                image.size,
            )
        records.append({"file": name, "number": one.image, "why": one.why, "masks": masks})
    with atomic_write(folder / FILE) as file:
        file.write(json.dumps({"pictures": records}).encode())
    # What an earlier end of the same run chose and this one did not.
    for old in [*place.glob("[0-9]*.png"), *place.glob("[0-9]*.jpg")]:
        if old.name not in {record["file"] for record in records}:
            old.unlink()


def read_pictures(file: Path, images: int) -> tuple[list[SamplePicture], list[str]]:
    """Read samples/samples.json and the pictures that it lists.

    Args:
        file: its path.
        images: how many detections.npz holds.

    Returns:
        The pictures, and the names of those that are missing or cannot be read.

    Raises:
        ValueError: the list makes no sense.
        KeyError: a part of an entry is missing.
    """
    pictures: list[SamplePicture] = []
    lost: list[str] = []
    for record in json.loads(file.read_text(encoding="utf-8"))["pictures"]:
        # Only a name, so that a list from elsewhere cannot put other files of this machine on the page.
        name, number = Path(str(record["file"])).name, int(record["number"])
        if not 0 <= number < images:
            raise ValueError(f"it lists image {number}, but there are {images}")
        try:
            with Image.open(file.parent / name) as opened:
                image = opened.convert("RGB")
        except (OSError, Image.DecompressionBombError):
            lost.append(name)
            continue
        masks = {
            str(who): {int(row): decode_rle(rle, image.height, image.width) for row, rle in rles.items()}
            for who, rles in record["masks"].items()
        }
        pictures.append(SamplePicture(image, number, str(record["why"]), masks))
    return pictures, lost


def _reduced(masks: Mapping[int, NDArray[np.bool_]], size: tuple[int, int]) -> dict[str, Any]:
    reduced = {}
    for row, mask in masks.items():
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        reduced[str(row)] = encode_rle(np.asarray(picture) >= 128)
    return reduced
