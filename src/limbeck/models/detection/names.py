"""The names by which detectors are asked for, checked without importing torch.

A detector is `torchvision:NAME` with one of torchvision's published names, or `torchvision:FAMILY(backbone=..., ...)` with
any backbone; `hf:NAME-OR-FOLDER` (transformers) or `hf:MODEL_TYPE(option=...)`, an architecture with random weights; or a
detector's run folder. `NAME@weights.safetensors` takes the weights from a file.
"""

import difflib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.call_text import parse_options
from limbeck.errors import UserError
from limbeck.models.names import (
    MODEL_FILE,
    is_run,
    looks_like_path,
    no_run_in,
    refuse_options,
    split_name,
    tuples_as_lists,
    weights_file,
)

DetectorKind = Literal["torchvision", "hf", "run"]

PUBLISHED = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
"""torchvision's detectors with weights of COCO."""

FAMILIES = ("faster_rcnn", "mask_rcnn", "retinanet", "fcos", "ssdlite")
"""torchvision's detectors with any backbone."""

SET_ELSEWHERE = {
    "num_classes": "The classes are those of your data; in Python, load_detector has the argument class_names.",
    "class_names": "The classes are those of your data; in Python, load_detector has the argument class_names.",
    "pretrained": "Use --pretrained (--student_pretrained for a student), or load_detector's argument pretrained.",
    "short": "Use --short_side, or load_detector's argument short.",
    "long": "Use --long_side, or load_detector's argument long.",
}
"""Options that are no part of a detector's name, with what is used instead."""

FORMS = (
    "A detector is torchvision:NAME (torchvision:fasterrcnn_resnet50_fpn), torchvision:FAMILY(backbone=NAME), "
    "hf:NAME-OR-FOLDER, hf:MODEL_TYPE(option=...) or a detector's run folder, optionally followed by "
    "@weights.safetensors."
)
_PREFIXES: tuple[DetectorKind, ...] = ("torchvision", "hf")
_BARE = re.compile(r"[A-Za-z]\w*")


@dataclass(frozen=True)
class DetectorName:
    """A detector's name, taken apart.

    Attributes:
        kind: which adapter opens it.
        name: the part that the adapter understands; for a run, the folder that holds `model.json`.
        weights: the file after `@`, if any.
        text: what the user wrote.
        options: those in parentheses; plain values, tuples as lists since `model.json` cannot tell them apart.
    """

    kind: DetectorKind
    name: str
    weights: Path | None
    text: str
    options: dict[str, Any] = field(default_factory=dict)


def parse_detector_name(text: str) -> DetectorName:
    """Take a detector's name apart and check all that can be checked without its library.

    Raises:
        FileNotFoundError: the weights file or the folder does not exist.
        UserError: the name has no meaning, the folder is no detector's run, or the options cannot be read or given here.
    """
    if is_run(text):
        return DetectorName("run", _detectors_run(Path(text).expanduser()), None, text)
    name, arguments, file = split_name(text, FORMS)
    weights = weights_file(file, name, text, FORMS) if file is not None else None
    if arguments and is_run(name):
        raise UserError(f"{text!r} gives options to a run's folder, which takes none; its detector is what it is.")
    kind, name = _kind_and_name(name, text)
    options = {key: tuples_as_lists(value) for key, value in parse_options(arguments, text).items()}
    refuse_options(options, SET_ELSEWHERE, text)
    if kind == "hf" and weights is not None and os.path.isdir(name):
        raise UserError(f"{text!r} gives a weights file to a folder that has its own weights. Leave one of them out.")
    return DetectorName(kind, name, weights, text, options)


def has_own_weights(text: str) -> bool:
    """Whether a name says which weights it means: a hub's name or folder, a run or a weights file.

    torchvision's published names do not, since they are also names of architectures; `--student_pretrained` asks for
    their weights.
    """
    parsed = parse_detector_name(text)
    if parsed.kind == "hf":
        return not parsed.options and ("/" in parsed.name or os.path.isdir(parsed.name))
    return parsed.weights is not None or parsed.kind == "run"


def stands_for_weights(text: str) -> bool:
    """Whether there are weights that a name can be opened with: not those of a bare architecture."""
    parsed = parse_detector_name(text)
    return has_own_weights(text) or (parsed.kind == "torchvision" and parsed.name in PUBLISHED)


def _kind_and_name(name: str, text: str) -> tuple[DetectorKind, str]:
    prefix, colon, rest = name.partition(":")
    for kind in _PREFIXES:
        if colon and prefix == kind:
            if not rest:
                raise UserError(f"{text!r} names no detector after {kind}:. {FORMS}")
            if kind == "torchvision":
                _check_torchvision(rest)
                return kind, rest
            return kind, str(Path(rest).expanduser()) if rest.startswith("~") else rest
    if looks_like_path(name):
        folder = Path(name).expanduser()
        if not os.path.exists(folder):
            raise FileNotFoundError(f"The detector's folder {folder} does not exist. {FORMS}")
        raise UserError(no_run_in(folder))
    hint = ""
    if _BARE.fullmatch(name):
        close = difflib.get_close_matches(name, (*FAMILIES, *PUBLISHED), n=2)
        hint = f"Did you mean {' or '.join(f'torchvision:{other}' for other in close)}? " if close else ""
    raise UserError(f"{text!r} is not a detector's name. {hint}{FORMS}")


def _check_torchvision(name: str) -> None:
    if name in (*FAMILIES, *PUBLISHED):
        return
    close = difflib.get_close_matches(name, (*FAMILIES, *PUBLISHED), n=3)
    hint = f"Did you mean {' or '.join(f'torchvision:{other}' for other in close)}? " if close else ""
    raise UserError(
        f"torchvision has no detector {name!r} that is known here. {hint}With weights of COCO there are "
        f"{', '.join(PUBLISHED)}; with a backbone of your choice, as in faster_rcnn(backbone=resnet18), "
        f"{', '.join(FAMILIES)}."
    )


def _detectors_run(folder: Path) -> str:
    try:
        record = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    except ValueError:
        return str(folder)  # the door says what is wrong with the file
    if isinstance(record, dict) and "rebuild" in record and record.get("task") != "detection":
        raise UserError(
            f"{folder} holds an image classifier, and a detector is needed here. A classifier can be a detector's backbone: "
            f"torchvision:faster_rcnn(backbone='{folder}')."
        )
    return str(folder)
