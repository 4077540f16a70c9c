"""The names of scenes, checked cheaply before anything heavy is imported."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.call_text import parse_options, split_call
from limbeck.data.names import PARTIAL_FILE, SYNTHESIS_FILE, DataNotFoundError
from limbeck.errors import UserError

SceneKind = Literal["coco", "voc", "yolo", "shapes", "images", "synthetic"]

KNOWN_SCENES = (
    "shapes, coco:ANNOTATIONS.json,IMAGES, coco:TRAIN.json,TRAIN_IMAGES,VAL.json,VAL_IMAGES, voc:FOLDER, yolo:FOLDER "
    "or yolo:DATA.yaml; a folder that limbeck synthesize wrote; or, for a teacher to label, a folder of images"
)
SYNTHETIC_PARTS = ("annotations.json", "images")
"""In a folder of scenes that were made for a detector: annotations, in COCO's format, and pictures."""
SHAPES_OPTIONS = ("train", "val", "size", "seed")


@dataclass(frozen=True)
class ScenesName:
    """A name taken apart.

    Attributes:
        kind: of the scenes.
        paths: files and folders, all of which are there; none for shapes. Of made scenes annotations and pictures.
        options: of shapes.
    """

    kind: SceneKind
    paths: tuple[Path, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def check_scenes_name(text: str) -> ScenesName:
    """What a name of scenes means; nothing is opened.

    Args:
        text: shapes, or shapes(train=400, val=100, size=128, seed=0) | coco:ANNOTATIONS.json,IMAGES, and perhaps
            ,VAL.json,VAL_IMAGES | voc:FOLDER | yolo:FOLDER or yolo:DATA.yaml | a folder that `limbeck synthesize` wrote |
            a folder of images without boxes.

    Raises:
        DataNotFoundError: (a UserError and a FileNotFoundError) a file or folder is not there.
        UserError: the name is none of these, or of made pictures that are not finished or not for a detector.
    """
    if text.split("(")[0].strip() == "shapes":
        return ScenesName("shapes", options=_shapes_options(text))
    if text.strip() and (folder := Path(text).expanduser()).is_dir():
        _check_folder(folder, text)
        return _folder(folder, text)
    kind, colon, rest = text.partition(":")
    if not colon or kind not in ("coco", "voc", "yolo"):
        raise UserError(
            f"Data {text!r} is no set of images with boxes, nor a folder that is there. It may be {KNOWN_SCENES}."
        )
    parts = [part.strip() for part in rest.split(",")] if kind == "coco" else [rest.strip()]
    if not all(parts) or (kind == "coco" and len(parts) not in (2, 4)):
        raise UserError(
            f"Data {text!r} cannot be read. Write coco:ANNOTATIONS.json,IMAGES, or with a validation set "
            "coco:TRAIN.json,TRAIN_IMAGES,VAL.json,VAL_IMAGES; voc:FOLDER; yolo:FOLDER; yolo:DATA.yaml."
        )
    paths = tuple(Path(part).expanduser() for part in parts)
    if kind == "coco":
        for file, folder in zip(paths[::2], paths[1::2], strict=True):
            _check_file(file, text)
            _check_folder(folder, text)
        return ScenesName("coco", paths)
    if kind == "yolo" and (paths[0].is_file() or paths[0].suffix.lower() in (".yaml", ".yml")):
        _check_file(paths[0], text)
        return ScenesName("yolo", paths)
    _check_folder(paths[0], text)
    return ScenesName("voc" if kind == "voc" else "yolo", paths)


def _folder(folder: Path, text: str) -> ScenesName:
    if (folder / PARTIAL_FILE).is_file():
        raise UserError(
            f"{folder} holds made pictures that are not finished: limbeck synthesize was stopped. Run the same command again "
            "with --resume, and use the folder when it has ended."
        )
    if not (folder / SYNTHESIS_FILE).is_file():
        return ScenesName("images", (folder,))
    try:
        task = json.loads((folder / SYNTHESIS_FILE).read_bytes())["task"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / SYNTHESIS_FILE} is damaged ({error}). Copy or make the folder again.") from None
    if task != "detection":
        raise UserError(
            f"{folder} holds pictures that were made for a classifier, without boxes. Make some for a detector with limbeck "
            f"synthesize --task detection; or name {folder / 'images'}, for a detector to label."
        )
    annotations, images = (folder / part for part in SYNTHETIC_PARTS)
    _check_file(annotations, text)
    _check_folder(images, text)
    return ScenesName("synthetic", (annotations, images))


def _shapes_options(text: str) -> dict[str, Any]:
    _, arguments, rest = split_call(text, "data")
    if rest.strip():
        raise UserError(f"Data {text!r} cannot be read after its options: {rest.strip()!r}.")
    options = parse_options(arguments, text)
    if unknown := [name for name in options if name not in SHAPES_OPTIONS]:
        raise UserError(f"Data {text!r}: shapes has no option {unknown[0]}. Its options: {', '.join(SHAPES_OPTIONS)}.")
    return options


def _check_file(path: Path, text: str) -> None:
    _check_there(path, text, "file")
    if not path.is_file():
        raise UserError(f"Data {text!r}: {path} is a folder where a file is expected. Name the file in it.")
    if path.stat().st_size == 0:
        raise UserError(f"Data {text!r}: the file {path} is empty (0 bytes). Copy or download it again.")


def _check_folder(path: Path, text: str) -> None:
    _check_there(path, text, "folder")
    if not path.is_dir():
        raise UserError(f"Data {text!r}: {path} is a file where a folder is expected.")


def _check_there(path: Path, text: str, what: str) -> None:
    if not path.exists():
        raise DataNotFoundError(f"Data {text!r}: there is no {what} {path}. The name may be {KNOWN_SCENES}.")
    if not os.access(path, os.R_OK):
        raise UserError(f"Data {text!r}: {path} cannot be read: permission denied. Change its permissions.")
