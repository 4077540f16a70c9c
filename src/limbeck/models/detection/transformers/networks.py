"""From a name to one of transformers' detection networks, with weights or without. Code from a hub is never run."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.detection import Resize
from limbeck.errors import MissingExtraError, UserError
from limbeck.models.detection.transformers.class_slots import class_slots, name_classes
from limbeck.models.detection.transformers.families import FAMILIES, Family
from limbeck.models.weights import is_unreachable, weights_hash

try:
    import transformers
    from transformers import AutoConfig
    from transformers.image_processing_base import ImageProcessingMixin
except ImportError as missing:
    raise MissingExtraError("transformers", "hf", "A detector named hf:...") from missing

from limbeck.models.base import Provenance
from limbeck.models.transformers_models import first_line, licence_of

_LABELS = ("num_labels", "id2label", "label2id", "architectures")


@dataclass
class Opened:
    """A network and how pictures are prepared for it.

    Attributes:
        network: the library's own network.
        family: what to do with it.
        resize: the size at which it wants to see an image.
        mean, std: of the pixels, in [0, 1] units; None where the family's own hold.
        provenance: licence and source of the weights.
    """

    network: nn.Module
    family: Family
    resize: Resize
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    provenance: Provenance = field(default_factory=lambda: Provenance("none attached (random initialisation)"))


def open_network(
    name: str, *, text: str, class_names: tuple[str, ...] | None, pretrained: bool, options: dict[str, Any]
) -> Opened:
    """A network by a hub name, a local folder, or a bare model type (random weights).

    Args:
        name: `facebook/detr-resnet-50`, a folder with `config.json`, or `yolos`, `rt_detr`, ...
        text: the name the user gave.
        class_names: None means the configuration's own; others are given to networks without weights only.
        pretrained: with the weights; a bare model type has none.
        options: fields of the configuration.

    Raises:
        UserError: there is no such network, it is no detector, or an option is not one of its configuration's.
    """
    if name in FAMILIES and not Path(name).is_dir():
        config = _configured(name, options, text)
        family = FAMILIES[config.model_type]
        return Opened(_build(config, text, class_names), family, family.resize(config))
    local = Path(name).is_dir()
    hub = {"trust_remote_code": False, "local_files_only": local or is_unreachable("huggingface.co")}
    try:
        config = AutoConfig.from_pretrained(name, **hub)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{text} could not be opened: {first_line(error)} Give a folder saved by transformers, as hf:FOLDER, or "
            f"one of the model types {', '.join(sorted(FAMILIES))}."
        ) from error
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{text} is of the type {config.model_type!r}, which is no detector that is known here; "
            f"known are {', '.join(sorted(FAMILIES))}."
        )
    if options:
        _check_options(config, options, text)
        config = type(config).from_dict({**config.to_dict(), **options})
    family = FAMILIES[config.model_type]
    if not pretrained:
        opened = Opened(_build(config, text, class_names), family, family.resize(config))
        _prepare_as_written(opened, name, hub)
        return opened
    architecture = _architecture(config, text)
    try:
        network, info = architecture.from_pretrained(
            name, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **hub
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The weights of {text} could not be opened: {first_line(error)} They must be safetensors and fit the "
            "configuration; save them again with save_pretrained where they are older, or connect to the network once."
        ) from error
    notes = []
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        notes.append(f"{len(info['missing_keys'])} tensors are not in the weights and freshly initialised: {some}")
    provenance = Provenance(licence_of(name), f"transformers: {name}", weights_hash(network), notes)
    opened = Opened(network, family, family.resize(config), provenance=provenance)
    _prepare_as_written(opened, name, hub)
    return opened


def from_configuration(config: Any, text: str, class_names: tuple[str, ...] | None) -> Opened:
    """A network with random weights from a configuration, for other classes where names are given."""
    family = FAMILIES[config.model_type]
    return Opened(_build(config, text, class_names), family, family.resize(config))


def class_names(name: str) -> tuple[str, ...] | None:
    """The classes in a local or already fetched configuration; None where they are only placeholders."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError):
        return None
    names = tuple(class_slots(config))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def configuration(values: dict[str, Any]) -> Any:
    """The configuration that `plain_values` wrote down."""
    return AutoConfig.for_model(**values)


def plain_values(config: Any) -> dict[str, Any]:
    """The plain values of a configuration."""
    return dict(json.loads(config.to_json_string(use_diff=False)))


def _configured(model_type: str, options: dict[str, Any], text: str) -> Any:
    _check_options(AutoConfig.for_model(model_type), options, text)
    try:
        return AutoConfig.for_model(model_type, **options)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{text} cannot be configured: {first_line(error)} Correct the option it names.") from error


def _check_options(config: Any, options: dict[str, Any], text: str) -> None:
    known = {*config.to_dict(), *_LABELS}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(
            f"{text} has no option {', '.join(unknown)}; its configuration has "
            f"{', '.join(sorted(name for name in known if not name.startswith('_')))}."
        )


def _architecture(config: Any, text: str) -> Any:
    known = FAMILIES[config.model_type].architectures
    name = next((name for name in config.architectures or () if name in known), known[0])
    architecture = getattr(transformers, name, None)
    if architecture is None:
        raise UserError(
            f"{text} needs {name}, which transformers {transformers.__version__} does not have; upgrade transformers."
        )
    return architecture


def _build(config: Any, text: str, names: tuple[str, ...] | None) -> nn.Module:
    config = copy.deepcopy(config)
    if names is not None and names != tuple(class_slots(config)):
        name_classes(config, names)
    for part in (config, getattr(config, "backbone_config", None)):
        # Without weights means that nothing is fetched for the backbone either.
        if part is not None and getattr(part, "use_pretrained_backbone", False):
            part.use_pretrained_backbone = False
    architecture = _architecture(config, text)
    config.architectures = [architecture.__name__]
    try:
        network: nn.Module = architecture(config)
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, IndexError) as error:
        raise UserError(
            f"{text} cannot be built from its configuration: {first_line(error)} Options that belong together (channels, "
            "levels, heads) must fit each other."
        ) from error
    return network


def _prepare_as_written(opened: Opened, name: str, hub: dict[str, Any]) -> None:
    """Take mean, std and size from the processor's JSON file; the processor itself is not made."""
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(name, local_files_only=hub["local_files_only"])
    except (OSError, ValueError):
        opened.provenance.notes.append("no preprocessor_config.json: the family's usual size, mean and std are assumed")
        return
    if not values.get("do_normalize", True):
        opened.mean, opened.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif values.get("image_mean") and values.get("image_std"):
        opened.mean, opened.std = tuple(values["image_mean"]), tuple(values["image_std"])
    opened.resize = resize_as_written(values.get("size"), opened.resize)


def resize_as_written(size: Any, default: Resize) -> Resize:
    """A processor's `size` as a `Resize`; `default` where it says nothing."""
    if isinstance(size, dict) and "height" in size:
        return Resize(int(size["height"]), int(size["width"]), stretch=True)
    if isinstance(size, dict) and size.get("shortest_edge"):
        short = int(size["shortest_edge"])
        return Resize(short, int(size.get("longest_edge") or default.long))
    return default
