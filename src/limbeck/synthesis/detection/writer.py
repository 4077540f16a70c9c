"""A folder of made scenes in COCO's format: pictures, annotations, and what made them; written so that it can be gone on with.

    images/000000.png ...   8-bit RGB
    annotations.json        COCO's object detection format; `score` is the teacher's on the saved picture, 0 where it
                            does not find the object again
    contact_sheet.png       some of the pictures with their boxes
    README.md               the data card
    synthesis.json          what made them, from which teacher, and the numbers of `measure`; written last

While pictures are still to come, there is a journal instead of the last four: its first line is the recipe, the others are
batches, each added when its files are on the disk. A line that was cut off, and a batch whose files are gone or have another
length, count for nothing, and neither does what follows them.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import limbeck
from limbeck.contact_sheet import contact_sheet
from limbeck.data.detection.masks import encode_rle
from limbeck.data.names import PARTIAL_FILE, SYNTHESIS_FILE
from limbeck.data.synthetic import FORMAT_VERSION
from limbeck.detection import Found, Target
from limbeck.errors import UserError
from limbeck.files import atomic_write
from limbeck.models.weights import weights_hash
from limbeck.synthesis.detection.base import DetectionSetting, MadeScenes, find
from limbeck.synthesis.detection.card import data_card
from limbeck.synthesis.detection.labels import CONFIDENT, match
from limbeck.synthesis.detection.sheet import sheet_item
from limbeck.synthesis.journal import (
    CARD_FILE,
    IMAGES_FOLDER,
    SHEET_FILE,
    is_there,
    make_folder,
    require_same,
    write_or_explain,
)
from limbeck.synthesis.pixels import to_pixels
from limbeck.synthesis.quality import class_balance

ANNOTATIONS_FILE = "annotations.json"

_ON_SHEET = 24

Scene = dict[str, Any]
"""A picture: `image`, COCO's entry of it, and `annotations`, COCO's entries of its objects without ids of their own."""


class SceneWriter:
    """Writes made scenes into a folder, or goes on where an earlier run with the same settings was stopped.

    Args:
        folder: new or empty, or one that an earlier run began.
        setting: with which the scenes are made; its teacher is asked about every saved picture.
        text: the way as the user asked for it, `scenes(...)`.
        count: pictures in all, on which the last batch depends; None where it is not known.

    Attributes:
        scenes: those that are written.

    Raises:
        UserError: the folder cannot be made, holds something else, finished scenes, or scenes that were begun otherwise.
    """

    def __init__(self, folder: Path, setting: DetectionSetting, text: str, *, count: int | None = None) -> None:
        self.folder, self.setting = folder, setting
        self.scenes: list[Scene] = []
        self.recipe = recipe_of(setting, text, count)
        self._journal = folder / PARTIAL_FILE
        if self._journal.is_file():
            self._take_up()
        else:
            self._begin()
        self._earlier = len(self.scenes)

    def done(self) -> int:
        """Pictures that are there."""
        return len(self.scenes)

    def write(self, made: MadeScenes) -> None:
        """Save pictures, ask the teacher what it finds in them again, and only then count them as done.

        Raises:
            UserError: the disk is full.
        """
        pixels = to_pixels(made.images).cpu()
        saved = (pixels.float() / 255).to(self.setting.device)
        pictures = pixels.permute(0, 2, 3, 1).numpy()
        scenes: list[Scene] = []
        for picture, target, found in zip(pictures, made.targets, find(self.setting.teacher, saved), strict=True):
            number = len(self.scenes) + len(scenes)
            name = f"{number:06d}.png"
            with atomic_write(self.folder / IMAGES_FOLDER / name) as file:
                Image.fromarray(picture).save(file, format="PNG")
            height, width = (int(side) for side in picture.shape[:2])
            image = {"id": number + 1, "file_name": name, "height": height, "width": width}
            scenes.append({"image": image, "annotations": _annotations(target, found, number + 1)})
        sizes = [self._picture(scene).stat().st_size for scene in scenes]
        line = json.dumps({"scenes": scenes, "bytes": sizes})
        write_or_explain(self._journal, line.encode() + b"\n", append=True)
        self.scenes += scenes

    def finish(self, notes: Sequence[str] = (), seconds: float | None = None) -> dict[str, Any]:
        """Write annotations, contact sheet, data card and, last, the record.

        Args:
            notes: for the data card.
            seconds: that this run took for the pictures that no earlier one had made; None says nothing of time.

        Returns:
            The record's numbers; see `measure`.

        Raises:
            UserError: there are no pictures, or the disk is full.
        """
        if not self.scenes:
            raise UserError(f"There are no pictures in {self.folder} to finish with. Make at least one.")
        annotations = [annotation for scene in self.scenes for annotation in scene["annotations"]]
        content = {
            "info": {"description": "Pictures made for a detector", "teacher": self.recipe["teacher"]["name"]},
            "images": [scene["image"] for scene in self.scenes],
            "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)],
            "categories": [{"id": id_, "name": name} for id_, name in enumerate(self.setting.class_names, start=1)],
        }
        with atomic_write(self.folder / ANNOTATIONS_FILE) as file:
            file.write(json.dumps(content).encode())
        items = [
            sheet_item(self.folder / IMAGES_FOLDER, scene, self.setting.class_names)
            for scene in _spread(self.scenes, _ON_SHEET)
        ]
        with atomic_write(self.folder / SHEET_FILE) as file:
            contact_sheet(items, thumb=max(item.image.width for item in items)).save(file, format="PNG")
        numbers = measure(self.scenes, self.setting.class_names)
        record = self.recipe | {
            "finished": True,
            "limbeck": limbeck.__version__,
            "numbers": numbers,
            "notes": list(notes),
        }
        if seconds is not None and self.done() > self._earlier:
            record["seconds_per_picture"] = round(seconds / (self.done() - self._earlier), 2)
        with atomic_write(self.folder / CARD_FILE) as file:
            file.write(data_card(record).encode())
        with atomic_write(self.folder / SYNTHESIS_FILE) as file:
            file.write(json.dumps(record, indent=2).encode())
        self._journal.unlink(missing_ok=True)
        return numbers

    def _begin(self) -> None:
        if self.folder.is_dir() and (entries := sorted(entry.name for entry in self.folder.iterdir())):
            if SYNTHESIS_FILE in entries:
                raise UserError(f"{self.folder} holds finished pictures already. Choose another folder.")
            raise UserError(
                f"{self.folder} is not empty (it holds {entries[0]}), and no pictures were begun in it. Choose another "
                "folder, or empty this one."
            )
        make_folder(self.folder / IMAGES_FOLDER)
        with atomic_write(self._journal) as file:
            file.write(json.dumps(self.recipe).encode() + b"\n")

    def _take_up(self) -> None:
        lines = self._journal.read_bytes().split(b"\n")[:-1]  # what follows the last line's end was cut off
        try:
            before, *batches = [json.loads(line) for line in lines]
        except ValueError as error:
            raise UserError(
                f"{self._journal} is damaged ({error}), so its pictures cannot be gone on with. Empty the folder, or choose "
                "another."
            ) from None
        require_same(self.folder, before, self.recipe)
        kept = len(lines[0]) + 1
        for batch, line in zip(batches, lines[1:], strict=True):
            pairs = zip(batch["scenes"], batch["bytes"], strict=True)
            if not all(is_there(self._picture(scene), length) for scene, length in pairs):
                break
            self.scenes += batch["scenes"]
            kept += len(line) + 1
        os.truncate(self._journal, kept)

    def _picture(self, scene: Scene) -> Path:
        file: Path = self.folder / IMAGES_FOLDER / scene["image"]["file_name"]
        return file


def recipe_of(setting: DetectionSetting, text: str, count: int | None) -> dict[str, Any]:
    """Plain values from which the scenes follow, as far as they are known here."""
    teacher = setting.teacher
    return {
        "format_version": FORMAT_VERSION,
        "task": "detection",
        "sources": [{"text": text, "count": count}],
        "teacher": {
            "name": teacher.facts.name,
            "weights_sha256": weights_hash(teacher),
            "licence": teacher.provenance.licence,
        },
        "num_classes": teacher.facts.num_classes,
        "class_names": list(teacher.facts.class_names),
        "has_masks": teacher.facts.has_masks,
        "size": list(setting.size),
        "batch_size": setting.batch_size,
        "seed": setting.seed,
    }


def measure(scenes: Sequence[Scene], class_names: Sequence[str]) -> dict[str, Any]:
    """What the pictures hold, in numbers.

    Returns:
        `pictures`; `boxes`; `boxes_per_picture`: mean, least and most; `class_counts`; `class_balance` of the boxes' classes;
        `mean_teacher_score` of the boxes' classes on the saved pictures, 0 where not found; `found_again`: the share of
        the boxes that the teacher finds there with a score of at least 0.2.
    """
    of_pictures = torch.tensor([len(scene["annotations"]) for scene in scenes], dtype=torch.float64)
    annotations = [annotation for scene in scenes for annotation in scene["annotations"]]
    scores = torch.tensor([annotation["score"] for annotation in annotations], dtype=torch.float64)
    counts = [0] * len(class_names)
    for annotation in annotations:
        counts[annotation["category_id"] - 1] += 1
    any_boxes = len(annotations) > 0
    return {
        "pictures": len(scenes),
        "boxes": len(annotations),
        "boxes_per_picture": [float(of_pictures.mean()), int(of_pictures.min()), int(of_pictures.max())],
        "class_counts": dict(zip(class_names, counts, strict=True)),
        "class_balance": round(class_balance(torch.tensor(counts)), 4),
        "mean_teacher_score": round(float(scores.mean()), 4) if any_boxes else 0.0,
        "found_again": round(float((scores >= CONFIDENT).double().mean()), 4) if any_boxes else 0.0,
    }


def _annotations(target: Target, found: Found, image_id: int) -> list[dict[str, Any]]:
    """COCO's entries of one picture, without ids of their own."""
    scores = match(target, found).scores.tolist()
    entries: list[dict[str, Any]] = []
    for row, (label, (x1, y1, x2, y2)) in enumerate(zip(target.labels.tolist(), target.boxes.tolist(), strict=True)):
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "score": scores[row],
        }
        if target.masks is not None:
            mask = target.masks[row].cpu().numpy()
            entry |= {"area": float(mask.sum()), "segmentation": encode_rle(mask)}
        entries.append(entry)
    return entries


def _spread(scenes: Sequence[Scene], most: int) -> list[Scene]:
    """At most so many scenes, evenly over all."""
    count = min(most, len(scenes))
    return [scenes[number * len(scenes) // count] for number in range(count)]
