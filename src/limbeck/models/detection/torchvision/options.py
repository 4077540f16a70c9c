"""The options that a torchvision detector's name may carry, with their defaults and the values they take."""

import difflib
from typing import Any

from limbeck.errors import UserError
from limbeck.models.detection.names import FAMILIES

_BACKBONE: dict[str, Any] = {"backbone": None, "backbone_pretrained": False, "norm": "auto", "trainable_layers": "auto"}
_TWO_STAGE: dict[str, Any] = {
    "fpn_channels": 256,
    "head_channels": 1024,
    "anchor_sizes": None,
    "proposals": [2000, 1000],
    "train_regions": 512,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {**_BACKBONE, **_TWO_STAGE},
    "mask_rcnn": {**_BACKBONE, **_TWO_STAGE, "mask_channels": 256},
    "retinanet": {**_BACKBONE, "fpn_channels": 256, "anchor_sizes": None},
    "fcos": {**_BACKBONE, "fpn_channels": 256},
    "ssdlite": {**_BACKBONE, "extra_channels": [512, 256, 256, 128]},
}
"""Of the families with any backbone.

backbone: a classifier; see `limbeck.models.detection.backbones.open_backbone`.
backbone_pretrained: with the weights that its library publishes under its name.
norm: the backbone's batch norms: `frozen` (statistics and scales fixed), `batch` (trained), or `auto`: frozen where the
    backbone starts from weights.
trainable_layers: the backbone's stages, counted from the deepest, that are trained; `auto` is 3 where it starts from
    weights (all of a plain vision transformer's), as torchvision does, and all where it does not.
fpn_channels: of every map of the pyramid.
head_channels: of the two hidden layers of the box head.
mask_channels: of the mask head.
proposals: how many the region proposal network passes on for each image, in training and when measuring.
train_regions: how many of them are learned from for each image; at most a quarter show an object.
anchor_sizes: pixels of the anchors' sides, one list for each map; None is 8 times its stride (RetinaNet: and two sizes
    between that and the next map's).
extra_channels: of the maps that SSDLite adds to the backbone's two.
"""

_PUBLISHED: dict[str, Any] = {"norm": "auto", "trainable_layers": "auto"}


def read_options(name: str, options: dict[str, Any], text: str) -> dict[str, Any]:
    """The options given and the defaults of the others.

    Args:
        name: a family or a published name.
        options: those of the detector's name.
        text: the name the user gave, for messages.

    Raises:
        UserError: one is unknown, or has a value that it cannot have.
    """
    known = DEFAULTS[name] if name in FAMILIES else _PUBLISHED
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise UserError(
                f"torchvision:{name} has no option {option}, which {text!r} gives. {hint}It has {', '.join(known)}."
            )
    read = {**known, **options}
    for option, value in read.items():
        _check(option, value, text)
    return read


def _check(option: str, value: Any, text: str) -> None:
    expected = {
        "backbone": "a text",
        "backbone_pretrained": "True or False",
        "norm": "auto, frozen or batch",
        "trainable_layers": "auto or a number from 0 on",
        "anchor_sizes": "a list with one list of positive numbers for each map",
        "proposals": "a list of two whole numbers from 1 on",
        "extra_channels": "a list of positive even numbers",
    }.get(option, "a positive number")
    good: dict[str, Any] = {
        "backbone": value is None or isinstance(value, str),
        "backbone_pretrained": isinstance(value, bool),
        "norm": value in ("auto", "frozen", "batch"),
        "trainable_layers": value == "auto" or _is_count(value, 0),
        "anchor_sizes": value is None or (isinstance(value, list) and bool(value) and all(map(_are_sizes, value))),
        "proposals": isinstance(value, list) and len(value) == 2 and all(_is_count(v, 1) for v in value),
        "extra_channels": isinstance(value, list)
        and bool(value)
        and all(_is_count(v, 2) and v % 2 == 0 for v in value),
    }
    if not good.get(option, _is_count(value, 1)):
        raise UserError(f"In {text!r}, {option} is {value!r}; it must be {expected}.")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in value)
    )
