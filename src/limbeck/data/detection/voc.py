"""Pascal VOC's folders: Annotations/*.xml, JPEGImages, and the lists in ImageSets/Main.

What is decided here:

* VOC counts pixels from 1 and includes the last one, so xmin, ymin, xmax, ymax are the box xmin - 1, ymin - 1, xmax,
  ymax. Other tools write 0-based edges; where any coordinate of the set is below 1, which VOC's cannot be, all of them
  are taken as edges, and a note says so.
* `difficult` objects become crowds: neither learned from nor missed, as in VOC's protocol, where a detection of one is
  neither right nor wrong. (COCO's rule for crowds lets several detections share one, VOC's lets one.)
* Classes are the names that occur, sorted; VOC's own list is in this order.
* Masks (SegmentationObject) exist for a part of VOC's images only and are not read.

Source of the format: M. Everingham et al., The PASCAL Visual Object Classes Challenge 2012 Development Kit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from limbeck.data.decode import EXTENSIONS
from limbeck.data.detection.opened import Opened, hash_files, read_lines
from limbeck.data.detection.problems import BadImages, Problems
from limbeck.data.detection.table import SceneTable, TableBuilder
from limbeck.errors import UserError

_SIDES = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    number: int  # in the file, from 1
    name: str
    box: list[float]
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    size: tuple[int, int] | None
    file_name: str | None
    objects: "list[_Object]"


def open_voc(folder: Path, bad_images: BadImages) -> Opened:
    """Open a folder in the layout of Pascal VOC.

    Args:
        folder: with Annotations/ and JPEGImages/.
        bad_images: whether bad annotations and missing images end it or are left out.

    Raises:
        UserError: the folder cannot be used; the message names the file and the object.
    """
    for name in ("Annotations", "JPEGImages"):
        if not (folder / name).is_dir():
            raise UserError(f"{folder} has no folder {name}/. Give a folder in the layout of Pascal VOC.")
    problems = Problems(str(folder))
    lists = _lists(folder)
    names = [name for split in lists.values() for name in split]
    annotations = {name: found for name in names if (found := _read_xml(folder, name, problems)) is not None}
    class_names = sorted({each.name for found in annotations.values() for each in found.objects})
    low = sum(min(each.box[:2]) < 1 for found in annotations.values() for each in found.objects)
    images = _images(folder)
    tables = {
        split: _table(folder, members, annotations, images, class_names, 0 if low else 1, problems)
        for split, members in lists.items()
    }
    notes = problems.finish(bad_images)
    if low:
        notes.append(
            f"{folder}: {low} boxes have a coordinate below 1, so boxes are taken as 0-based edges, not as VOC's 1-based "
            "pixels."
        )
    if (folder / "SegmentationObject").is_dir():
        notes.append(f"{folder / 'SegmentationObject'} is not read; the set is used for boxes only.")
    record: dict[str, Any] = {
        "kind": "voc",
        "split": "given" if "val" in lists else "none",
        "first_pixel": int(not low),
    }
    record["sha256"] = hash_files([_xml(folder, name) for name in annotations], folder)
    difficult = sum(each.difficult for found in annotations.values() for each in found.objects)
    if difficult:
        notes.append(f"{folder}: {difficult} objects are marked difficult; they are neither learned from nor measured.")
    return Opened(tables["train"], tables.get("val"), record, notes)


def _lists(folder: Path) -> dict[str, list[str]]:
    """The images of each split; of all under "train" where there is no split."""
    sets = folder / "ImageSets" / "Main"
    files = {name: sets / f"{name}.txt" for name in ("train", "val", "trainval", "test")}
    lists = {name: [line.split()[0] for line in read_lines(file)] for name, file in files.items() if file.is_file()}
    held_out = next((name for name in ("val", "test") if name in lists), None)
    if "train" in lists and held_out:
        if both := set(lists["train"]) & set(lists[held_out]):
            raise UserError(
                f"{sets}: {len(both)} images are both in train.txt and in {held_out}.txt, such as {min(both)}. Take them "
                "out of one."
            )
        chosen = {"train": lists["train"], "val": lists[held_out]}
    elif "trainval" in lists:
        chosen = {"train": lists["trainval"]}
    else:
        chosen = {"train": sorted(file.stem for file in (folder / "Annotations").glob("*.xml"))}
    for split, members in chosen.items():
        if len(set(members)) < len(members):
            doubled = next(name for name in members if members.count(name) > 1)
            raise UserError(f"{folder}: the image {doubled} is twice in the list of {split} images.")
    if not chosen["train"]:
        raise UserError(f"{folder / 'Annotations'} holds no .xml files.")
    return chosen


def _read_xml(folder: Path, name: str, problems: Problems) -> _Annotation | None:
    path = _xml(folder, name)
    if not path.is_file():
        problems.add("missing annotation file", f"image {name}: there is no file {path}")
        return None
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not well-formed XML ({error}). Correct it, or take it out of the list.") from error
    objects = []
    for number, element in enumerate(root.iter("object"), start=1):
        where = f"image {name} ({path.name}), object {number}"
        label = (element.findtext("name") or "").strip()
        texts = [element.findtext(f"bndbox/{side}") for side in _SIDES]
        if not label:
            problems.add("no class name", f"{where}: it has no <name>")
            continue
        try:
            box = [float(text) for text in texts if text is not None]
        except ValueError:
            box = []
        if len(box) != 4:
            problems.add("unreadable box", f"{where} ({label}): its <bndbox> is not four numbers {', '.join(_SIDES)}")
            continue
        difficult = (element.findtext("difficult") or "0").strip() == "1"
        objects.append(_Object(number, label, box, difficult))
    sides = [root.findtext(f"size/{side}") or "" for side in ("height", "width")]
    given = all(side.strip().isdigit() and int(side) > 0 for side in sides)
    return _Annotation((int(sides[0]), int(sides[1])) if given else None, root.findtext("filename"), objects)


def _table(
    folder: Path,
    members: Iterable[str],
    annotations: dict[str, _Annotation],
    images: dict[str, str],
    class_names: list[str],
    first_pixel: int,
    problems: Problems,
) -> SceneTable:
    labels = {name: label for label, name in enumerate(class_names)}
    builder = TableBuilder(folder / "JPEGImages", class_names, problems)
    for name in members:
        found = annotations.get(name)
        if found is None:
            continue
        file = images.get(name) or found.file_name or f"{name}.jpg"
        if not builder.add_image(file, name, found.size):
            continue
        for number, label, (x1, y1, x2, y2), difficult in found.objects:
            builder.add_object(
                name,
                f"image {name} ({name}.xml), object {number} ({label})",
                label=labels[label],
                box=(x1 - first_pixel, y1 - first_pixel, x2, y2),
                is_crowd=difficult,
            )
    return builder.build()


def _images(folder: Path) -> dict[str, str]:
    """File names by their stems."""
    files = sorted((folder / "JPEGImages").iterdir())
    return {file.stem: file.name for file in files if file.suffix.lower() in EXTENSIONS}


def _xml(folder: Path, name: str) -> Path:
    return folder / "Annotations" / f"{name}.xml"
