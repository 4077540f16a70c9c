"""YOLO's text labels: a line for each object, its class and then a box, or a polygon, in shares of the image's sides.

`class centre_x centre_y width height` is a box, `class x1 y1 x2 y2 x3 y3 ...` a polygon. The labels of
`.../images/a/b.jpg` are in `.../labels/a/b.txt`; an image without such a file, or with an empty one, is background.

A set is a data.yaml (`path`, `train`, `val` or `test`, `names`; a split is a folder, a text file with a list of images,
or several of these), or a folder with one, or a folder with classes.txt and images/ beside labels/, split into images/train
and images/val, or into train/images and valid/images, or not at all.

Source of the format: https://docs.ultralytics.com/datasets/detect and /segment.
"""

import math
from pathlib import Path
from typing import Any

import yaml

from limbeck.data.decode import EXTENSIONS
from limbeck.data.detection.opened import Opened, hash_files, read_lines
from limbeck.data.detection.problems import BadImages, Problems
from limbeck.data.detection.table import SceneTable, TableBuilder
from limbeck.data.folder import list_images
from limbeck.errors import UserError

_VAL_NAMES = ("val", "valid", "validation", "test")
# Shares may overshoot by rounding; more than this means pixels or another format.
_OVERSHOOT = 0.01


def open_yolo(path: Path, bad_images: BadImages) -> Opened:
    """Open a set with YOLO's labels.

    Args:
        path: data.yaml, or a folder.
        bad_images: whether bad labels and images end it or are left out.

    Raises:
        UserError: the set cannot be used; the message names the file and the line.
    """
    root, splits, class_names = _from_yaml(path) if path.is_file() else _from_folder(path)
    if "val" in splits and (both := set(splits["train"]) & set(splits["val"])):
        raise UserError(f"{path}: {len(both)} images are both in train and in val, such as {min(both)}.")
    problems = Problems(str(path))
    builders = {}
    label_files: list[Path] = []
    for split, images in splits.items():
        builders[split] = TableBuilder(root, class_names, problems)
        for image in images:
            _add_image(builders[split], image, root, label_files)
    _find_orphans(label_files, [image for images in splits.values() for image in images], problems)
    notes = problems.finish(bad_images)
    tables: dict[str, SceneTable] = {split: builder.build() for split, builder in builders.items()}
    notes += [note for builder in builders.values() for note in builder.notes]
    record: dict[str, Any] = {"kind": "yolo", "split": "given" if "val" in tables else "none"}
    record["sha256"] = hash_files(label_files, root)
    return Opened(tables["train"], tables.get("val"), record, notes)


def _from_folder(folder: Path) -> tuple[Path, dict[str, list[Path]], list[str]]:
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (folder / name).is_file():
            return _from_yaml(folder / name)
    names = next((file for file in (folder / "classes.txt", folder / "labels" / "classes.txt") if file.is_file()), None)
    if names is None:
        raise UserError(
            f"{folder} has neither data.yaml nor classes.txt, so its classes have no names. Add one of them."
        )
    class_names = _check_names(read_lines(names), names)
    for first, second in (("images", ""), ("", "images")):
        train = folder / first / "train" / second
        val = next((path for name in _VAL_NAMES if (path := folder / first / name / second).is_dir()), None)
        if train.is_dir() and val is not None:
            return folder, {"train": list_images(train), "val": list_images(val)}, class_names
    if not (folder / "images").is_dir():
        raise UserError(f"{folder} has no folder images/ (beside labels/). Add it, or name a data.yaml.")
    return folder, {"train": _some_images(list_images(folder / "images"), folder / "images")}, class_names


def _from_yaml(file: Path) -> tuple[Path, dict[str, list[Path]], list[str]]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or "train" not in content or "names" not in content:
        raise UserError(f"{file} lacks train or names. It needs path, train, val and names.")
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{file}: names are numbered {sorted(names, key=str)[:5]}..., not 0 to {len(names) - 1}.")
        names = [names[number] for number in range(len(names))]
    class_names = _check_names(names, file)
    if "nc" in content and content["nc"] != len(class_names):
        raise UserError(f"{file}: nc is {content['nc']}, but there are {len(class_names)} names.")
    root = (file.parent / str(content.get("path") or ".")).resolve()
    if not root.is_dir():
        raise UserError(f"{file}: its path {content['path']} is no folder. Give the folder relative to the file.")
    splits = {"train": _listed(content["train"], root, file)}
    if val := next((content[name] for name in _VAL_NAMES if content.get(name)), None):
        splits["val"] = _listed(val, root, file)
    return root, splits, class_names


def _listed(entry: Any, root: Path, file: Path) -> list[Path]:
    """The images of a split: a folder, a list file, or several of these."""
    images: list[Path] = []
    for text in entry if isinstance(entry, list) else [entry]:
        # Roboflow writes paths as if the file lay one folder deeper.
        path = next((p for t in (str(text), str(text).removeprefix("../")) if (p := root / t).exists()), None)
        if path is None:
            raise UserError(f"{file}: there is no {root / str(text)}. Correct train, val or path in it.")
        if path.is_dir():
            images += _some_images(list_images(path), path)
        else:
            images += [root / line for line in read_lines(path)]
    return images


def _some_images(images: list[Path], folder: Path) -> list[Path]:
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}).")
    return images


def _add_image(builder: TableBuilder, image: Path, root: Path, label_files: list[Path]) -> None:
    name = image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)
    image_id = name.removesuffix(image.suffix)
    if image_id in builder.images:
        raise UserError(f"{root}: two images share the labels of {image_id}, such as {name}. Rename one.")
    if not builder.add_image(name, image_id):
        return
    labels = _labels_of(image)
    if not labels.is_file():
        return
    label_files.append(labels)
    for number, line in enumerate(labels.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if line.strip():
            _add_line(builder, image_id, f"image {name}, {labels.name} line {number}", line.split())


def _add_line(builder: TableBuilder, image_id: str, where: str, words: list[str]) -> None:
    problems, image = builder.problems, builder.images[image_id]
    try:
        values = [float(word) for word in words]
    except ValueError:
        problems.add("unreadable line", f"{where}: {' '.join(words)[:60]!r} is not made of numbers")
        return
    label, shares = values[0], values[1:]
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
        problems.add(
            "unreadable line",
            f"{where}: it has {len(values)} numbers; a box has 5, a polygon of three or more points 7, 9, 11, ...",
        )
        return
    if label not in range(len(builder.class_names)):
        problems.add(
            "unknown class",
            f"{where}: its class {words[0]} is not 0 to {len(builder.class_names) - 1}, as there are names",
        )
        return
    if not all(math.isfinite(share) for share in shares):
        problems.add("box with NaN or infinity", f"{where}: {' '.join(words)[:60]}")
        return
    if min(shares) < -_OVERSHOOT or max(shares) > 1 + _OVERSHOOT:
        problems.add(
            "coordinates beyond 0 to 1",
            f"{where}: {' '.join(words)[:60]} are not shares of the image's sides, from 0 to 1",
        )
        return
    if len(shares) == 4:
        x, y, width, height = shares
        left, top = (x - width / 2) * image.width, (y - height / 2) * image.height
        right, bottom = (x + width / 2) * image.width, (y + height / 2) * image.height
        builder.add_object(image_id, where, label=int(label), box=(left, top, right, bottom))
        return
    polygon = [share * side for share, side in zip(shares, (image.width, image.height) * len(shares), strict=False)]
    builder.add_object(image_id, where, label=int(label), box=None, segment=[polygon])


def _labels_of(image: Path) -> Path:
    """The last folder called images becomes labels; without one, the labels are beside the image."""
    parts = list(image.parts)
    folders = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _find_orphans(label_files: list[Path], images: list[Path], problems: Problems) -> None:
    """Label files, in the folders in use, beside whose folder there is no image of their name, listed or not."""
    image_folders = {_labels_of(image).parent: image.parent for image in images}
    for folder in sorted({file.parent for file in label_files}):
        stems = {file.stem for file in image_folders[folder].iterdir() if file.suffix.lower() in EXTENSIONS}
        for file in sorted(folder.glob("*.txt")):
            if file.stem not in stems and file.name != "classes.txt":
                problems.add("labels without an image", f"{file}: there is no image of this name")


def _check_names(names: Any, file: Path) -> list[str]:
    if not isinstance(names, list) or not names or not all(str(name).strip() for name in names):
        raise UserError(f"{file}: its class names must be a list, one name for each class, none of them empty.")
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        doubled = next(name for name in texts if texts.count(name) > 1)
        raise UserError(f"{file}: the class name {doubled!r} is there twice. Give each class its own name.")
    return texts
