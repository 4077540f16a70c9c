"""COCO's annotation files: boxes with polygons, run lengths (compressed or not) and crowds.

An annotation's `score`, which COCO's results have and its truth has not, says how sure a teacher was of a pseudo-label.

Sparse category ids become 0 to K - 1 in the order of the ids. The split is, in this order: a second pair of file and
folder; the field `source_split` of the images, where every image has it and its values begin with train and val; or
one made by image id.

Source of the format: https://cocodataset.org/#format-data.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.detection.base import SceneSource, SceneSubset
from limbeck.data.detection.opened import Opened, hash_files
from limbeck.data.detection.problems import BadImages, Problems
from limbeck.data.detection.table import Box, SceneTable, TableBuilder
from limbeck.errors import UserError

_LISTS = ("images", "annotations", "categories")


def open_coco(paths: tuple[Path, ...], bad_images: BadImages) -> Opened:
    """Open one COCO file, or one to learn from and one to measure on.

    Args:
        paths: annotations and image folder; and the same for validation, or nothing.
        bad_images: whether bad annotations and missing images end it or are left out.

    Raises:
        UserError: the file cannot be used; the message names it, and the image and annotation.
    """
    file, folder = paths[:2]
    train, train_content, notes = _read(file, folder, bad_images)
    record: dict[str, Any] = {"kind": "coco", "split": "none", "annotations": str(file), "images": str(folder)}
    record["sha256"] = hash_files([file], file.parent)
    if len(paths) == 2:
        given = _split_by_field(train, train_content)
        if given is None:
            return Opened(train, None, record, notes)
        record |= {"split": "given", "split_by": "source_split"}
        return Opened(*given, record, notes)
    val, _, val_notes = _read(paths[2], paths[3], bad_images, order=train.class_names)
    record |= {"split": "given", "val_annotations": str(paths[2]), "val_images": str(paths[3])}
    record["val_sha256"] = hash_files([paths[2]], paths[2].parent)
    if both := {train.describe(i) for i in range(len(train))} & {val.describe(i) for i in range(len(val))}:
        raise UserError(
            f"{len(both)} images are both in {file} and in {paths[2]}, such as {min(both)}. Take them out of one, since "
            "a model must not be measured on what it has learned from."
        )
    return Opened(train, val, record, notes + val_notes)


def _read(
    file: Path, folder: Path, bad_images: BadImages, order: tuple[str, ...] | None = None
) -> tuple[SceneTable, dict[str, Any], list[str]]:
    """Read one file; `order` are the class names that it must have."""
    content = _load(file)
    labels, class_names = _categories(content["categories"], file)
    if order is not None:
        if set(order) != set(class_names):
            only = [sorted(set(a) - set(b)) for a, b in ((order, class_names), (class_names, order))]
            raise UserError(
                f"{file} has other categories than the training annotations: missing {only[0][:5]}, added "
                f"{only[1][:5]}. Make them the same."
            )
        labels = {category: order.index(class_names[label]) for category, label in labels.items()}
        class_names = order
    problems = Problems(str(file))
    builder = TableBuilder(folder, class_names, problems)
    known = _add_images(builder, content["images"], file)
    seen: set[int | str] = set()
    for number, entry in enumerate(content["annotations"]):
        _require_dict(entry, f"annotations[{number}]", file)
        name = entry.get("id", f"number {number}")
        if name in seen:
            raise UserError(f"{file}: two annotations have the id {name}. Give each its own.")
        seen.add(name)
        _add_annotation(builder, entry, f"annotation {name}", known, labels)
    notes = problems.finish(bad_images)
    table = builder.build()
    return table, content, notes + builder.notes


def _add_images(builder: TableBuilder, images: list[Any], file: Path) -> set[int | str]:
    """Add all images; their ids, also of those that could not be added."""
    known: set[int | str] = set()
    for number, entry in enumerate(images):
        _require_dict(entry, f"images[{number}]", file)
        image_id, name = entry.get("id"), entry.get("file_name")
        if not _is_id(image_id) or not isinstance(name, str) or not name:
            raise UserError(f"{file}: images[{number}] needs an id and a file_name; it is {str(entry)[:100]}.")
        if image_id in known:
            raise UserError(f"{file}: two images have the id {image_id}. Give each its own.")
        known.add(image_id)
        sides = entry.get("height"), entry.get("width")
        given = all(isinstance(side, int | float) and side >= 1 and side == int(side) for side in sides)
        builder.add_image(name, image_id, (int(sides[0]), int(sides[1])) if given else None)
    if len({type(image_id) for image_id in known}) > 1:
        raise UserError(f"{file}: some image ids are numbers and some are texts; make them all one kind.")
    return known


def _add_annotation(
    builder: TableBuilder, entry: dict[str, Any], name: str, known: set[int | str], labels: dict[int, int]
) -> None:
    problems, image_id, category = builder.problems, entry.get("image_id"), entry.get("category_id")
    if not _is_id(image_id) or image_id not in known:
        problems.add("unknown image", f"{name}: its image_id {image_id!r} is none of the file's images")
        return
    if image_id not in builder.images:
        return  # the image itself is missing, and counted
    where = f"image {image_id} ({builder.images[image_id].file}), {name}"
    if type(category) is not int or category not in labels:
        problems.add("unknown category", f"{where}: its category_id {category!r} is not in the list of categories")
        return
    box: Box | None = None
    if (bbox := entry.get("bbox")) is not None:
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
            problems.add(
                "unreadable box", f"{where}: its bbox {str(bbox)[:60]} is not four numbers x, y, width, height"
            )
            return
        x, y, width, height = map(float, bbox)
        box = (x, y, x + width, y + height)
    area = entry.get("area")
    if area is not None and not _is_number(area):
        problems.add("bad area", f"{where}: its area is {area!r}")
        return
    score = entry.get("score")
    if score is not None and not _is_number(score):
        problems.add("bad score", f"{where}: its score is {score!r}")
        return
    builder.add_object(
        image_id,
        where,
        label=labels[category],
        box=box,
        segment=entry.get("segmentation"),
        is_crowd=bool(entry.get("iscrowd", 0)),
        area=area,
        score=score,
    )


def _categories(categories: list[Any], file: Path) -> tuple[dict[int, int], tuple[str, ...]]:
    names: dict[int, str] = {}
    for number, entry in enumerate(categories):
        _require_dict(entry, f"categories[{number}]", file)
        category, name = entry.get("id"), entry.get("name")
        if type(category) is not int or not isinstance(name, str) or not name:
            raise UserError(f"{file}: categories[{number}] needs a whole id and a name; it is {str(entry)[:100]}.")
        if category in names:
            raise UserError(f"{file}: two categories have the id {category}. Give each its own.")
        names[category] = name
    if not names:
        raise UserError(f"{file} lists no categories.")
    if doubled := sorted(name for name in set(names.values()) if list(names.values()).count(name) > 1):
        raise UserError(f"{file}: several categories are called {doubled[0]!r}. Give each its own name.")
    order = sorted(names)
    return {category: label for label, category in enumerate(order)}, tuple(names[category] for category in order)


def _split_by_field(table: SceneTable, content: dict[str, Any]) -> tuple[SceneSource, SceneSource] | None:
    splits = {image["id"]: image.get("source_split") for image in content["images"]}
    if not all(isinstance(split, str) and split.startswith(("train", "val")) for split in splits.values()):
        return None
    is_val = np.array([splits[table.image_id(i)].startswith("val") for i in range(len(table))], dtype=bool)
    if is_val.all() or not is_val.any():
        return None
    return SceneSubset(table, np.flatnonzero(~is_val)), SceneSubset(table, np.flatnonzero(is_val))


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is not JSON ({error}). Give COCO's annotation file (instances_....json), copied whole."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not an object with {', '.join(_LISTS)}.")
    if missing := [key for key in _LISTS if not isinstance(content.get(key), list)]:
        raise UserError(
            f"{file} lacks the list{_plural(missing)} {', '.join(missing)} (it has {', '.join(content) or 'nothing'}). "
            "Give an annotation file of COCO's object detection format."
        )
    return content


def _require_dict(entry: Any, name: str, file: Path) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{file}: {name} is {str(entry)[:60]!r}, not an object with fields.")


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plural(items: Iterable[Any]) -> str:
    return "s" if len(list(items)) > 1 else ""
