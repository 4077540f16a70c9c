"""The one door to scenes: a name becomes `Scenes`, split, checked and recorded."""

import json
from pathlib import Path

import numpy as np

from limbeck.data.decode import find_bad_images
from limbeck.data.detection.base import Scenes, SceneSource, SceneSubset, split_scenes
from limbeck.data.detection.coco import open_coco
from limbeck.data.detection.measured_on import relabelled, require_unseen
from limbeck.data.detection.names import KNOWN_SCENES, check_scenes_name
from limbeck.data.detection.opened import Opened
from limbeck.data.detection.problems import BadImages
from limbeck.data.detection.shapes import open_shapes
from limbeck.data.detection.unlabelled import open_unlabelled
from limbeck.data.detection.voc import open_voc
from limbeck.data.detection.yolo import open_yolo
from limbeck.data.names import SYNTHESIS_FILE
from limbeck.data.split import evenly
from limbeck.errors import UserError

_MEASURED_ON_MADE = 200
"""At most so many made pictures are measured on where nothing real is to be had."""


def open_scenes(
    name: str,
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    bad_images: BadImages = "stop",
    val_data: str | None = None,
) -> Scenes:
    """Open images with boxes, and masks where there are any, by their name.

    Args:
        name: as in `check_scenes_name`.
        val_fraction: share of the images to hold out where the data gives no split, between 0 and 1. Nothing is held out of
            pictures that were made for a teacher: without `val_data`, some of those that are learned are measured on.
        split_seed: of that split, which is by image id.
        bad_images: "stop" raises an error at the first bad annotation or missing image, with the count of all, and at
            images that cannot be decoded when they are read; "skip" decodes every image once now and leaves out what is
            bad, counted in the notes and in the record.
        val_data: the name of other annotated scenes, whose validation images are measured on: those of their own split, else
            those that opening them alone would hold out. Nothing is then held out of the first, and validation images that
            they give themselves are not used.

    Returns:
        The scenes; their record is plain values for a JSON or YAML file.

    Raises:
        DataNotFoundError: (a UserError and a FileNotFoundError) a file or folder is not there.
        UserError: the data cannot be used; the message names the file, the image and the annotation.
    """
    opened = _open(name, bad_images)
    if val_data is not None:
        _measure_on(opened, name, _measured(val_data, val_fraction, split_seed, bad_images))
    elif opened.record["kind"] == "synthetic":
        opened.val = SceneSubset(opened.train, evenly(len(opened.train), _MEASURED_ON_MADE))
        opened.notes.append(
            "There is nothing real to measure on: scores are those on made pictures that are also learned, and say only how "
            "well the student agrees with its teacher. Name real annotated scenes with --val_data."
        )
    return _make_scenes(opened, name, val_fraction, split_seed)


def open_unlabelled_scenes(name: str, *, bad_images: BadImages = "stop") -> Opened:
    """Open a folder of images without boxes, for a teacher to label.

    Args:
        name: the folder; images at any depth count.
        bad_images: as in `open_scenes`.

    Returns:
        All images as `train`, without objects, classes or a validation set.

    Raises:
        UserError: the name is none of a folder that is there, or the folder holds no images.
    """
    parsed = check_scenes_name(name)
    if parsed.kind != "images":
        raise UserError(f"Data {name!r} has boxes of its own. Give a folder of images without boxes.")
    opened = open_unlabelled(parsed.paths[0])
    if bad_images == "skip":
        _skip_bad_images(opened)
    return opened


def open_pseudo_labels(file: Path, folder: Path, *, val_fraction: float = 0.1, split_seed: int = 0) -> Scenes:
    """Open images with the labels that `limbeck.data.detection.pseudo_labels.write_pseudo_labels` wrote.

    Args:
        file: the labels.
        folder: of the images.
        val_fraction, split_seed: as in `open_scenes`.

    Returns:
        The scenes, called by the folder; their objects have scores.

    Raises:
        UserError: an image is gone or changed, or fewer than two images have labels.
    """
    opened = open_coco((file, folder), "stop")
    opened.record["kind"] = "pseudo_labels"
    opened.notes.append(
        "The validation images carry the teacher's labels too: scores on them say how well the student agrees with it."
    )
    return _make_scenes(opened, str(folder), val_fraction, split_seed)


def _open(name: str, bad_images: BadImages) -> Opened:
    """Annotated scenes as they are found, without a split of our making."""
    parsed = check_scenes_name(name)
    if parsed.kind == "images":
        raise UserError(
            f"{name} is a folder of images without boxes, which only a teacher's labels can make into something to learn "
            f"from. Name annotated data: {KNOWN_SCENES}."
        )
    if parsed.kind == "shapes":
        opened = open_shapes(**parsed.options)
    elif parsed.kind == "coco":
        opened = open_coco(parsed.paths, bad_images)
    elif parsed.kind == "synthetic":
        opened = open_coco(parsed.paths, bad_images)
        made = json.loads((parsed.paths[0].parent / SYNTHESIS_FILE).read_bytes())
        opened.record |= {"kind": "synthetic", "labels": "the teacher's"}
        opened.record |= {key: made[key] for key in ("sources", "teacher") if key in made}
    elif parsed.kind == "voc":
        opened = open_voc(parsed.paths[0], bad_images)
    else:
        opened = open_yolo(parsed.paths[0], bad_images)
    if bad_images == "skip" and parsed.kind != "shapes":
        _skip_bad_images(opened)
    return opened


def _measured(name: str, val_fraction: float, split_seed: int, bad_images: BadImages) -> Scenes:
    """Annotated scenes of which the validation images are wanted."""
    opened = _open(name, bad_images)
    if opened.record["kind"] == "synthetic":
        raise UserError(
            f"The scenes to measure on, {name}, were made for a teacher, whose labels say nothing about what a detector is good "
            "for. Name real scenes that people annotated."
        )
    return _make_scenes(opened, name, val_fraction, split_seed)


def _measure_on(opened: Opened, name: str, measured: Scenes) -> None:
    val = relabelled(measured.val, opened.train.class_names, name, measured.name)
    require_unseen(opened.train, val, measured.name)
    opened.val = val
    opened.record |= {"split": "val_data", "val_data": {"name": measured.name, **measured.record}}
    opened.notes += [f"Measured on {len(val)} images of {measured.name}."]
    opened.notes += [f"{measured.name}: {note}" for note in measured.notes]


def _make_scenes(opened: Opened, name: str, val_fraction: float, split_seed: int) -> Scenes:
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must be between 0 and 1, both excluded.")
    train, val = _split(opened, name, val_fraction, split_seed)
    has_masks = train.has_masks and val.has_masks
    if train.has_masks != val.has_masks:
        which = "training" if train.has_masks else "validation"
        opened.notes.append(f"Only the {which} images have masks, so the set is used for boxes only.")
    scenes = Scenes(name, train, val, train.class_names, has_masks, _median_size(train), opened.record, opened.notes)
    _describe(scenes)
    return scenes


def _skip_bad_images(opened: Opened) -> None:
    listed: list[dict[str, str]] = []
    kept: list[SceneSource | None] = []
    for source in (opened.train, opened.val):
        bad = {} if source is None else find_bad_images(source)
        if source is None or not bad:
            kept.append(source)
            continue
        listed += [{"file": source.describe(index), "cause": cause} for index, cause in sorted(bad.items())]
        if len(bad) == len(source):
            raise UserError(f"Not one of {len(source)} images can be used. The first: {listed[0]['cause']}")
        good = np.setdiff1d(np.arange(len(source), dtype=np.int64), np.array(list(bad), dtype=np.int64))
        kept.append(SceneSubset(source, good))
    assert kept[0] is not None
    opened.train, opened.val = kept[0], kept[1]
    opened.record["bad_images"] = listed
    if listed:
        shown = ", ".join(entry["file"] for entry in listed[:5]) + (" ..." if len(listed) > 5 else "")
        opened.notes.append(
            f"{len(listed)} images cannot be decoded, or not in the size of their annotations, and are left out with "
            f"their objects: {shown}"
        )


def _split(opened: Opened, name: str, val_fraction: float, seed: int) -> tuple[SceneSource, SceneSource]:
    train, val = opened.train, opened.val
    if val is None:
        total = len(train)
        train, val = split_scenes(train, val_fraction, seed)
        opened.record |= {"split": "made", "split_by": "image id", "seed": seed, "val_fraction": val_fraction}
        opened.record["val_ids"] = [val.image_id(index) for index in range(len(val))]
        opened.notes.append(f"{len(val)} of {total} images are held out for validation (by image id, seed {seed}).")
    for split, source in (("training", train), ("validation", val)):
        if len(source) == 0:
            raise UserError(f"{name} has no {split} images.")
    return train, val


def _describe(scenes: Scenes) -> None:
    """Fill in the record and the notes that depend on the final choice of images."""
    record, notes = scenes.record, scenes.notes
    record["class_names"] = list(scenes.class_names)
    record["has_masks"] = scenes.has_masks
    record["native_size"] = list(scenes.native_size)
    record["class_counts"] = {}
    for split, source in (("train", scenes.train), ("val", scenes.val)):
        counts, empty = source.counts()
        if counts.sum() == 0:
            remedy = (
                "Choose another split_seed or a larger val_fraction."
                if split == "val" and record["split"] == "made"
                else "Check that the annotations belong to these images."
            )
            raise UserError(
                f"{scenes.name}: not one of {len(source)} {'training' if split == 'train' else 'validation'} images has "
                f"an object (crowds aside). {remedy}"
            )
        record["class_counts"][split] = {
            name: int(count) for name, count in zip(scenes.class_names, counts, strict=True)
        }
        record[f"{split}_images"] = len(source)
        record[f"{split}_background_images"] = empty
        if empty:
            notes.append(f"{empty} of {len(source)} {split} images have no annotation and count as background.")
    unseen = [name for name, count in record["class_counts"]["train"].items() if count == 0]
    if unseen:
        notes.append(f"{len(unseen)} classes have no training object: {', '.join(unseen[:5])}.")
    unmeasured = [name for name, count in record["class_counts"]["val"].items() if count == 0]
    if unmeasured:
        notes.append(
            f"{len(unmeasured)} classes have no validation object and are not measured: {', '.join(unmeasured[:5])}."
        )


def _median_size(source: SceneSource) -> tuple[int, int]:
    height, width = np.median(np.array([source.size(index) for index in range(len(source))]), axis=0)
    return int(height), int(width)
