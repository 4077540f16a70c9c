"""A folder of pictures that were made for a classifier: written batch by batch, so that a stopped run can be gone on with.

    images/<class folder>/<number>.png   8-bit RGB, in the folder of the teacher's own answer on the saved picture
    soft_labels.npz      logits (N, K) float32 of the teacher on the saved pictures, asked (N,) int64, -1 where no class was
                         asked for, files (N,)
    synthesis.json       what made them, a row for each picture, and the numbers of `limbeck.synthesis.quality`; written
                         last, so that it marks a finished folder
    README.md            the data card
    contact_sheet.png    up to 100 of the pictures

`limbeck.data.synthetic` reads it. The class folders sort in label order, so that other tools can read `images/`.
"""

import dataclasses
import io
import json
import re
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor

import limbeck
from limbeck.data.folder import FolderSource
from limbeck.data.names import SYNTHESIS_FILE
from limbeck.data.synthetic import FORMAT_VERSION
from limbeck.errors import UserError
from limbeck.files import atomic_write
from limbeck.models.base import VisionModel
from limbeck.models.weights import file_hash, weights_hash
from limbeck.synthesis.bank_sheet import draw_sheet
from limbeck.synthesis.base import Made, Setting
from limbeck.synthesis.data_card import data_card
from limbeck.synthesis.journal import CARD_FILE, IMAGES_FOLDER, SHEET_FILE, Row, open_journal, write_or_explain
from limbeck.synthesis.names import SynthesisSpec
from limbeck.synthesis.pixels import to_pixels
from limbeck.synthesis.quality import mean_confidence, measure, read_as_asked

LOGITS_FILE = "soft_labels.npz"

FORMATS = ("png", "webp")

_LONGEST_NAME = (
    50  # letters of a class's name in its folder's; file systems allow 255 bytes, and a letter takes up to 4
)
_OUR_FILE = re.compile(r"\d{6,}\.(png|webp)")


class BankWriter:
    """Writes pictures into a folder, or goes on where an earlier call with the same recipe was stopped.

    Args:
        folder: new or empty, or one that an earlier call began.
        setting: with which the pictures are made; its teacher is asked about every saved picture.
        sources: the ways to make pictures, as the user asked for them.
        counts: pictures of each source.
        image_format: png or webp; both are lossless.
        command: by which the user asked for all of it, for the data card.

    Raises:
        UserError: the folder holds something else, or pictures of another recipe (the message names the differences); the
            class names are not as many as the teacher's classes; webp cannot be written here.
    """

    def __init__(
        self,
        folder: str | Path,
        setting: Setting,
        sources: Sequence[SynthesisSpec],
        *,
        counts: Sequence[int],
        image_format: str = "png",
        command: str | None = None,
    ) -> None:
        self.folder, self.setting, self.sources = Path(folder), setting, list(sources)
        self.image_format, self.command = image_format, command
        names = setting.class_names
        if names is not None and len(names) != setting.num_classes:
            raise UserError(
                f"{len(names)} class names are recorded with {setting.teacher.facts.name}, which answers with "
                f"{setting.num_classes} classes. Correct the record, or use the teacher without one."
            )
        if image_format not in FORMATS:
            raise UserError(f"image_format is {image_format!r}; it must be one of {', '.join(FORMATS)}.")
        if image_format == "webp" and not features.check("webp"):
            raise UserError("This installation of Pillow cannot write webp files. Use --image_format png.")
        if (self.folder / SYNTHESIS_FILE).is_file():
            raise UserError(f"{folder} already holds finished synthetic images. Choose another folder.")
        self.folders = class_folders(setting.num_classes, names)
        self.journal = open_journal(self.folder, recipe_of(setting, self.sources, counts, image_format))
        self._remove_unrecorded()
        self._since = time.perf_counter()

    def done(self, source: int) -> int:
        """Pictures of a source that are written, whole batches."""
        return sum(row["source"] == source for row in self.journal.rows)

    def write(self, made: Made, source: int) -> None:
        """Save one batch, ask the teacher what it sees in the saved pictures, and only then count them as done.

        Args:
            made: pictures of the setting's size.
            source: number of the way that made them.

        Raises:
            UserError: they hold values that are no numbers, or the disk is full.
        """
        if not len(made):
            return
        name = self.sources[source].name
        assert made.images.shape[1:] == (3, *self.setting.size), f"{name} made {tuple(made.images.shape)}"
        if not made.images.isfinite().all():
            raise UserError(
                f"{name} made pictures whose values are not finite, so it diverged. Try it with smaller steps or weights."
            )
        pixels = to_pixels(made.images)
        logits = self._ask(pixels)
        rows: list[Row] = []
        asked = made.asked.tolist() if made.asked is not None else [None] * len(made)
        pictures = pixels.permute(0, 2, 3, 1).cpu().numpy()
        for place, (picture, label) in enumerate(zip(pictures, logits.argmax(1).tolist(), strict=True)):
            number = len(self.journal.rows) + place
            file = f"{IMAGES_FOLDER}/{self.folders[label]}/{number:06d}.{self.image_format}"
            content = self._encode(picture)
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            write_or_explain(self.folder / file, content)
            row = {"file": file, "label": label, "asked": asked[place], "source": source}
            rows.append(row | {"name": made.names[place] if made.names else "", "bytes": len(content)})
        now = time.perf_counter()
        self.journal.add(rows, logits, now - self._since)
        self._since = now

    def finish(
        self, *, seconds: float = 0.0, second: VisionModel | None = None, notes: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Write soft labels, contact sheet and data card, and last the record, which makes the folder a finished one.

        Args:
            seconds: that this call took; what earlier, stopped calls took is added.
            second: another network of the same classes, whose agreement with the teacher is measured.
            notes: sentences of the ways, for the card.

        Returns:
            What is in synthesis.json.

        Raises:
            UserError: there are no pictures, or the disk is full.
        """
        rows = [{key: value for key, value in row.items() if key != "bytes"} for row in self.journal.rows]
        if not rows:
            raise UserError(f"No images were made for {self.folder}. Ask for at least one.")
        logits = np.concatenate(self.journal.logits)
        asked = np.array([-1 if row["asked"] is None else row["asked"] for row in rows], dtype=np.int64)
        files = [row["file"] for row in rows]
        labels = np.array([row["label"] for row in rows], dtype=np.int64)
        with atomic_write(self.folder / LOGITS_FILE) as file:
            np.savez(file, logits=logits, asked=asked, files=np.array(files))
        pictures = FolderSource(self.folder, files, labels)
        quality = measure(
            pictures,
            logits,
            asked,
            self.setting.teacher,
            second=second,
            seed=self.setting.seed,
            batch_size=self.setting.batch_size,
        )
        record = {
            **self.journal.recipe,
            "sources": self._sources(rows, logits, asked),
            "command": self.command,
            "versions": {"limbeck": limbeck.__version__, "torch": str(torch.__version__)},
            "device": torch.cuda.get_device_name() if self.setting.device.type == "cuda" else self.setting.device.type,
            "seconds": round(self.journal.seconds + seconds, 1),
            "second": None if second is None else of_network(second),
            "notes": list(notes),
            "quality": {key: _rounded(value) for key, value in dataclasses.asdict(quality).items()},
            "class_counts": np.bincount(labels, minlength=self.setting.num_classes).tolist(),
        }
        with atomic_write(self.folder / SHEET_FILE) as file:
            sheet = draw_sheet(pictures, logits, asked, self.setting.class_names)
            sheet.save(file, format="PNG")
        with atomic_write(self.folder / CARD_FILE) as file:
            file.write(data_card(record).encode())
        record["pictures"] = rows
        with atomic_write(self.folder / SYNTHESIS_FILE) as file:
            file.write(_as_text(record).encode())
        self.journal.remove()
        return record

    def _remove_unrecorded(self) -> None:
        """Files of a batch during which an earlier call was stopped: they are made again, perhaps with another label."""
        kept = {row["file"] for row in self.journal.rows}
        for folder in self.folders:
            path = self.folder / IMAGES_FOLDER / folder
            for file in path.iterdir() if path.is_dir() else ():
                if f"{IMAGES_FOLDER}/{folder}/{file.name}" not in kept and _OUR_FILE.fullmatch(file.name):
                    file.unlink()
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    @torch.no_grad()
    def _ask(self, pixels: Tensor) -> NDArray[np.float32]:
        teacher, device = self.setting.teacher, self.setting.device
        with torch.autocast(device.type, enabled=False):
            parts = [
                teacher(part.to(device).float() / 255).logits.float().cpu()
                for part in pixels.split(self.setting.batch_size)
            ]
        logits: NDArray[np.float32] = torch.cat(parts).numpy()
        if not np.isfinite(logits).all():
            raise UserError(
                f"The teacher {teacher.facts.name} answers to made pictures with values that are not finite. Check its weights."
            )
        return logits

    def _encode(self, picture: NDArray[np.uint8]) -> bytes:
        content = io.BytesIO()
        options: dict[str, Any] = {"lossless": True} if self.image_format == "webp" else {}
        Image.fromarray(picture).save(content, format=self.image_format.upper(), **options)
        return content.getvalue()

    def _sources(
        self, rows: Sequence[Row], logits: NDArray[np.float32], asked: NDArray[np.int64]
    ) -> list[dict[str, Any]]:
        """What each source is, and the numbers of its pictures by themselves."""
        made_by = np.array([row["source"] for row in rows])
        found = []
        for number, (spec, asked_for) in enumerate(zip(self.sources, self.journal.recipe["sources"], strict=True)):
            own = made_by == number
            numbers = {
                "pictures": int(own.sum()),
                "classes": len(np.unique(logits[own].argmax(1))),
                "confidence": _rounded(mean_confidence(logits[own])) if own.any() else None,
                "read_as_asked": _rounded(read_as_asked(logits[own], asked[own])),
            }
            found.append({**asked_for, "name": spec.name, "options": spec.options, **numbers})
        return found


def recipe_of(
    setting: Setting, sources: Sequence[SynthesisSpec], counts: Sequence[int], image_format: str = "png"
) -> dict[str, Any]:
    """Plain values from which the pictures follow, as far as they are known here."""
    return {
        "format_version": FORMAT_VERSION,
        "task": "classification",
        "sources": [{"text": str(spec), "count": count} for spec, count in zip(sources, counts, strict=True)],
        "teacher": of_network(setting.teacher),
        "student": None if setting.student is None else of_network(setting.student),
        "statistics_sha256": None if setting.statistics is None else file_hash(Path(setting.statistics)),
        "num_classes": setting.num_classes,
        "class_names": None if setting.class_names is None else list(setting.class_names),
        "size": list(setting.size),
        "batch_size": setting.batch_size,
        "seed": setting.seed,
        "image_format": image_format,
    }


def class_folders(num_classes: int, class_names: Sequence[str] | None) -> list[str]:
    """A folder's name for each class: its number, so that they sort in label order, and its name as far as file systems take it.

    Args:
        num_classes: K.
        class_names: in label order; None where there are none: then the number is all, as for a class whose name it is.
    """
    digits = len(str(num_classes - 1))
    numbers = [f"{label:0{digits}d}" for label in range(num_classes)]
    if class_names is None:
        return numbers
    safe = (
        re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", name))[:_LONGEST_NAME].strip("_") for name in class_names
    )
    return [
        f"{number}_{name}" if name and name != str(label) else number
        for label, (number, name) in enumerate(zip(numbers, safe, strict=True))
    ]


def of_network(model: VisionModel) -> dict[str, Any]:
    """What a record says of a network; the hash is of its weights even where they are random."""
    return {
        "name": model.facts.name,
        "architecture": model.facts.architecture or model.facts.name,
        "source": model.provenance.source,
        "licence": model.provenance.licence,
        "weights_sha256": model.provenance.weights_sha256 or weights_hash(model),
        "input_size": list(model.facts.input_size),
    }


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if isinstance(value, float) else value


def _as_text(record: dict[str, Any]) -> str:
    """JSON for people: a picture is one line."""
    head = json.dumps({key: value for key, value in record.items() if key != "pictures"}, indent=2, ensure_ascii=False)
    rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in record["pictures"])
    return f'{head[:-2]},\n  "pictures": [\n{rows}\n  ]\n}}\n'
