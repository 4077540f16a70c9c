"""Transformers' detectors and instance segmenters behind `limbeck.models.detection.base.Detector`.

A name is a hub's name or a local folder (config.json and safetensors), or a bare model type with its configuration's
fields as options and random weights. Labels without a class ("N/A") are left out of every answer.
"""

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from limbeck.detection import Resize
from limbeck.errors import UserError
from limbeck.models.detection.base import Detector
from limbeck.models.detection.transformers.class_slots import carried, class_slots, with_classes
from limbeck.models.detection.transformers.networks import (
    Opened,
    class_names,
    configuration,
    from_configuration,
    open_network,
    plain_values,
)

__all__ = ["class_names", "create", "from_record"]


def create(
    name: str,
    *,
    text: str,
    class_names: tuple[str, ...] | None = None,
    pretrained: bool = True,
    options: dict[str, Any] | None = None,
    short: int | None = None,
    long: int | None = None,
    backbone: str | None = None,
) -> Detector:
    """A transformers detector.

    Args:
        name: a hub name, a local folder, or a model type (`yolos`, `detr`, `rt_detr`, `d_fine`, ...).
        text: the name the user gave.
        class_names: None means the weights' own; others replace the class head and keep the rows of equal names.
        pretrained: with the weights; False builds from the configuration alone.
        options: fields of the configuration, nested ones as dictionaries.
        short, long: pixels, in place of the family's usual size (height and width where it stretches pictures).
        backbone: must be None.

    Raises:
        UserError: there is no such network, it is no detector, an option is wrong, or a backbone is given.
    """
    if backbone is not None:
        raise UserError(
            f"{text} brings its own backbone, and backbone={backbone!r} was given. Leave it out; another one is chosen "
            "by the option backbone_config of a bare model type."
        )
    opened = open_network(name, text=text, class_names=class_names, pretrained=pretrained, options=options or {})
    if class_names is not None and class_names != tuple(class_slots(opened.network.config)):
        opened.network, notes = with_classes(opened.network, class_names)
        opened.provenance.notes += notes
    return _assemble(opened, text, short, long)


def from_record(
    values: dict[str, Any],
    *,
    text: str,
    class_names: tuple[str, ...] | None = None,
    short: int | None = None,
    long: int | None = None,
) -> Detector:
    """The same architecture without its weights.

    Args:
        values: `Detector.rebuild` of a detector of this library.
        text: the name the user gave.
        class_names: None means the recorded ones.
        short, long: pixels, in place of the recorded size.
    """
    recorded = configuration(values["config"])
    opened = from_configuration(recorded, text, class_names)
    opened.resize = Resize(**values["resize"])
    opened.mean, opened.std = tuple(values["mean"]), tuple(values["std"])
    detector = _assemble(opened, text, short, long)
    if detector.facts.class_names != tuple(class_slots(recorded)):
        # What the recorded weights need before they are loaded; only here is it known which slots they have.
        prepare = functools.partial(carried, config=recorded, network=opened.network)
        detector.prepare_state = prepare  # type: ignore[assignment]
    return detector


def _assemble(opened: Opened, text: str, short: int | None, long: int | None) -> Detector:
    config: Any = opened.network.config
    opened.resize = opened.resize.with_sides(short, long)
    detector: Detector = opened.family.load()(
        opened.network,
        config,
        text=text,
        class_names=tuple(class_slots(config)),
        resize=opened.resize,
        provenance=opened.provenance,
    )
    statistics = {name: _replace_buffer(detector, name, getattr(opened, name)) for name in ("mean", "std")}
    detector.rebuild = {
        "library": "transformers",
        "config": plain_values(config),
        "resize": dataclasses.asdict(detector.resize),
        **statistics,
    }
    return detector


def _replace_buffer(detector: Detector, name: str, values: tuple[float, ...] | None) -> list[float]:
    """Put what the weights' folder says in place of the family's mean or std; returns what holds now."""
    buffer = detector.get_buffer(name)
    if values is not None:
        buffer.copy_(torch.tensor(values).view_as(buffer))
    return [float(value) for value in Tensor.flatten(buffer)]
