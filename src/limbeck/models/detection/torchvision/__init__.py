"""torchvision's detectors behind our interface: its published ones, and its families with any backbone."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from limbeck.detection import Resize
from limbeck.errors import UserError
from limbeck.models.base import Provenance
from limbeck.models.detection.backbones import Backbone, freeze, open_backbone, open_recorded
from limbeck.models.detection.names import FAMILIES
from limbeck.models.detection.torchvision import published
from limbeck.models.detection.torchvision.base import TorchvisionDetector
from limbeck.models.detection.torchvision.classes import Slots
from limbeck.models.detection.torchvision.dense import DenseDetector
from limbeck.models.detection.torchvision.families import MAKERS
from limbeck.models.detection.torchvision.options import read_options
from limbeck.models.detection.torchvision.two_stage import TwoStageDetector
from limbeck.models.torchvision_models import fetch_weights
from limbeck.models.weights import load_weights, weights_hash

_TRAINED_STAGES = 3
"""torchvision's number, where a backbone starts from weights."""


def create(
    name: str,
    *,
    text: str,
    class_names: tuple[str, ...] | None,
    pretrained: bool,
    options: dict[str, Any],
    short: int | None,
    long: int | None,
    backbone: str | None,
) -> TorchvisionDetector:
    """A torchvision detector by its name; arguments and errors as for `limbeck.models.detection.door.load_detector`.

    Args:
        name: a published name or a family's.
        text: the name the user gave.
        class_names, pretrained, short, long, backbone: see there; a family has no weights of its own.
        options: see `limbeck.models.detection.torchvision.options`.
    """
    read = read_options(name, options, text)
    if name in FAMILIES:
        return _create_family(name, read, text, class_names, short, long, backbone)
    if backbone is not None:
        raise UserError(
            f"{text} has its own backbone, and {backbone!r} is given. For a backbone of your choice take a family: "
            f"{', '.join(f'torchvision:{family}' for family in FAMILIES)}."
        )
    return _create_published(name, read, text, class_names, short, long, pretrained=pretrained)


def from_record(
    values: dict[str, Any],
    *,
    text: str,
    class_names: tuple[str, ...] | None,
    short: int | None,
    long: int | None,
) -> TorchvisionDetector:
    """The architecture that `TorchvisionDetector.rebuild` describes, with random weights; other classes, other heads."""
    name, options = values["name"], values["options"]
    sides = Resize(values["short"], values["long"]).with_sides(short, long)
    short, long = sides.short, sides.long
    if name not in FAMILIES:
        coco = published.slots_of(name)
        slots = Slots.from_values(values, coco.scores, class_names)
        return _published(name, options, slots, text, short, long)
    slots = Slots.from_values(values, MAKERS[name].scores, class_names)
    return _family(name, options, open_recorded(values["backbone"], text=text), slots, text, short, long)


def class_names(name: str) -> tuple[str, ...] | None:
    """The class names of a published name's weights; None of families, which have no weights."""
    return None if name in FAMILIES else published.slots_of(name).class_names


def _create_family(
    name: str,
    options: dict[str, Any],
    text: str,
    class_names: tuple[str, ...] | None,
    short: int | None,
    long: int | None,
    backbone: str | None,
) -> TorchvisionDetector:
    if backbone is not None and options["backbone"] is not None:
        raise UserError(f"{text} names its backbone, and {backbone!r} is given beside it. Leave one of them out.")
    backbone = backbone or options["backbone"]
    if backbone is None:
        raise UserError(
            f"{text} names no backbone. Write torchvision:{name}(backbone=resnet18), with any torchvision classifier, "
            "timm:NAME, limbeck:NAME or the folder of a classifier's run."
        )
    if class_names is None:
        raise UserError(f"{text} has no weights, so that nothing says what its classes are. Give class names.")
    opened = open_backbone(backbone, pretrained=options["backbone_pretrained"], text=text)
    weighty = opened.provenance is not None
    resolved = options | {"backbone": backbone}
    if options["norm"] == "auto":
        resolved["norm"] = "frozen" if weighty else "batch"
    if options["trainable_layers"] == "auto":
        stages = min(_TRAINED_STAGES, len(opened.body.strides))
        resolved["trainable_layers"] = stages if weighty and not opened.body.plain else None
    detector = _family(name, resolved, opened, Slots.contiguous(class_names, MAKERS[name].scores), text, short, long)
    detector.open_options = None if weighty else options
    if opened.provenance is not None:
        detector.provenance = Provenance(
            licence=opened.provenance.licence,
            source=f"backbone: {opened.provenance.source}",
            weights_sha256=weights_hash(detector),
            notes=[*opened.provenance.notes, f"the backbone starts from the weights of {backbone}, the rest at random"],
        )
    return detector


def _family(
    name: str,
    options: dict[str, Any],
    backbone: Backbone,
    slots: Slots,
    text: str,
    short: int | None,
    long: int | None,
) -> TorchvisionDetector:
    """A family's network from options that are resolved."""
    family = MAKERS[name]
    network = family.make(backbone, slots.count, options, text)
    freeze(backbone.body, options["trainable_layers"], norms=options["norm"] == "frozen")
    record = {"name": name, "options": options, "backbone": backbone.rebuild}
    return _wrap(network)(network, slots, text=text, resize=family.resize.with_sides(short, long), rebuild=record)


def _create_published(
    name: str,
    options: dict[str, Any],
    text: str,
    class_names: tuple[str, ...] | None,
    short: int | None,
    long: int | None,
    *,
    pretrained: bool,
) -> TorchvisionDetector:
    coco = published.slots_of(name)
    slots = coco if class_names in (None, coco.class_names) else Slots.contiguous(class_names or (), coco.scores)
    settled = published.settle(name, options, weighty=pretrained, frozen=pretrained)
    detector = _published(name, settled, slots, text, short, long)
    if not pretrained:
        detector.open_options = options
        return detector
    weights = published.weights_of(name)
    state = detector.prepare_state(fetch_weights(weights, text), coco.class_names)
    detector.provenance.notes += load_weights(detector.network, weights.url, state=state)
    detector.provenance.licence = weights.meta.get(
        "license", "BSD-3-Clause (torchvision); the training data's terms may apply"
    )
    detector.provenance.source = f"torchvision: {weights}"
    detector.provenance.weights_sha256 = weights_hash(detector)
    return detector


def _published(
    name: str, options: dict[str, Any], slots: Slots, text: str, short: int | None, long: int | None
) -> TorchvisionDetector:
    """A published name's network from options that are resolved."""
    network = published.make(name, slots.count)
    published.fix(network, name, frozen=options["norm"] == "frozen", trainable=options["trainable_layers"], text=text)
    return _wrap(network)(
        network,
        slots,
        text=text,
        resize=_own_resize(network).with_sides(short, long),
        rebuild={"name": name, "options": options},
        published_slots=published.slots_of(name),
    )


def _wrap(network: nn.Module) -> Callable[..., TorchvisionDetector]:
    return TwoStageDetector if isinstance(network, GeneralizedRCNN) else DenseDetector


def _own_resize(network: Any) -> Resize:
    transform = network.transform
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return Resize(height, width, stretch=True, antialias=False)
    return Resize(transform.min_size[-1], transform.max_size, antialias=False)
