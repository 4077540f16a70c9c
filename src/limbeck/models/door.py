"""The door to every model: opened by its name, saved to a folder, made again from what the folder says.

`model.json` holds how the network is made (`rebuild`), how images are prepared for it, its classes, licence and
source, and the name and SHA-256 of the safetensors file beside it, which has the bare network's tensors under its
library's names. Nothing in either file is ever run.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck.call_text import write_call
from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.models.names import parse_model_name
from limbeck.models.record import read_record, read_weights, write_record, write_weights
from limbeck.models.weights import (
    bare_network,
    fit_state_dict,
    head_classes,
    load_weights,
    read_state_dict,
    weights_hash,
)

_ADAPTERS = {
    "timm": "limbeck.models.timm_models",
    "torchvision": "limbeck.models.torchvision_models",
    "hf": "limbeck.models.transformers_models",
    "factory": "limbeck.models.custom",
}
_NEEDED = (
    "rebuild",
    "weights",
    "sha256",
    "num_classes",
    "input_size",
    "mean",
    "std",
    "interpolation",
    "licence",
    "source",
)


def load_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool = True,
    input_size: tuple[int, int] | None = None,
    drop_path: float = 0.0,
) -> VisionModel:
    """Open a model by its name.

    Args:
        name: see `limbeck.models.names`.
        num_classes: K of the logits; None is the weights' own. Another number than theirs replaces the head.
        pretrained: with the weights that the name stands for; a file after `@` is always loaded. Our own networks
            have no published weights and start at random.
        input_size: (height, width) in pixels that images are resized to; None is the model's own.
        drop_path: stochastic depth of the deepest block, growing linearly from 0 at the first; in [0, 1).

    Returns:
        The model in training mode, on the CPU.

    Raises:
        FileNotFoundError: a named file or folder does not exist.
        UserError: the name is unknown, or its weights cannot be fetched, read or fitted.
    """
    parsed = parse_model_name(name)
    if parsed.kind == "run":
        return _open_run(Path(parsed.name), name, num_classes, pretrained, input_size, drop_path)
    make = functools.partial(
        _make, parsed.kind, parsed.name, parsed.options, text=name, input_size=input_size, drop_path=drop_path
    )
    if parsed.weights is None:
        return make(num_classes=num_classes, pretrained=pretrained)
    return _with_file(make, parsed.weights, num_classes)


def save_model(
    model: VisionModel, folder: str | Path, *, stem: str = "student", class_names: Sequence[str] | None = None
) -> None:
    """Write `<stem>.safetensors` and `model.json`, each whole or not at all; the folder is then a model's name.

    Args:
        model: the model; its weights are copied to the CPU.
        folder: made where it does not exist.
        stem: the weights file's name without its suffix.
        class_names: in label order, where they are known.
    """
    folder = Path(folder)
    weights = write_weights(model, folder, stem)
    record = {
        "name": model.facts.name,
        "rebuild": model.rebuild,
        **weights,
        "num_classes": model.facts.num_classes,
        "class_names": list(class_names) if class_names is not None else None,
        "input_size": list(model.facts.input_size),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "interpolation": model.interpolation,
        "licence": model.provenance.licence,
        "source": model.provenance.source,
        # Imported by name: the face imports the verbs, which stand above the models.
        "limbeck_version": importlib.import_module("limbeck").__version__,
    }
    write_record(folder, record)


def rebuild(
    values: dict[str, Any],
    *,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    drop_path: float = 0.0,
    text: str | None = None,
) -> VisionModel:
    """Make the architecture that `VisionModel.rebuild` describes, with random weights and without the network.

    Args:
        values: that dictionary.
        num_classes, input_size: others than its own.
        drop_path: as in `load_model`.
        text: the name for facts and messages; None is the architecture's.

    Raises:
        UserError: the values name no library that is known here.
    """
    library = values.get("library")
    settings: dict[str, Any] = {
        "num_classes": num_classes or values["num_classes"],
        "input_size": input_size or tuple(values["input_size"]),
        "drop_path": drop_path,
    }
    if library == "transformers":
        adapter = importlib.import_module(_ADAPTERS["hf"])
        config = adapter.AutoConfig.for_model(**values["config"])
        config.num_labels = settings["num_classes"]
        notes = adapter.set_drop_path(config, text or config.model_type, drop_path)
        preparation = {key: values[key] for key in ("mean", "std", "interpolation")}
        preparation["input_size"] = settings["input_size"]
        made: VisionModel = adapter.from_config(
            config, text=text or config.model_type, preparation=preparation, notes=notes
        )
        return made
    if library not in ("timm", "torchvision", "limbeck", "factory"):
        raise UserError(
            f"A model of the library {library!r} was saved by another version of Limbeck; this one cannot make it."
        )
    name, options = values["factory" if library == "factory" else "name"], values.get("options", {})
    return _make(library, name, options, text=text or write_call(name, options), pretrained=False, **settings)


def class_names_of(name: str) -> tuple[str, ...] | None:
    """The class names recorded with a run or a transformers model, in label order; None where nobody recorded any."""
    parsed = parse_model_name(name)
    if parsed.kind == "run":
        names = _record(Path(parsed.name)).get("class_names")
        return tuple(names) if names is not None else None
    if parsed.kind == "hf":
        found: tuple[str, ...] | None = importlib.import_module(_ADAPTERS["hf"]).class_names(parsed.name)
        return found
    return None


def _make(
    kind: str,
    name: str,
    options: dict[str, Any],
    *,
    text: str,
    num_classes: int | None,
    pretrained: bool,
    input_size: tuple[int, int] | None,
    drop_path: float,
) -> VisionModel:
    """A network by its kind and name: the one place that decides who makes it and whether it takes options."""
    if kind == "limbeck":
        return _make_ours(name, options, text=text, num_classes=num_classes, input_size=input_size, drop_path=drop_path)
    model: VisionModel = importlib.import_module(_ADAPTERS[kind]).create(
        name,
        text=text,
        num_classes=num_classes,
        pretrained=pretrained,
        input_size=input_size,
        drop_path=drop_path,
        **({"options": options} if kind in ("timm", "factory") else {}),
    )
    return model


def _make_ours(
    name: str,
    options: dict[str, Any],
    *,
    text: str,
    num_classes: int | None,
    input_size: tuple[int, int] | None,
    drop_path: float,
) -> VisionModel:
    from limbeck.models import cifar, ipe_vit

    if name in ipe_vit.NAMES:
        return ipe_vit.create(
            name, num_classes=num_classes, input_size=input_size, drop_path=drop_path, text=text, options=options
        )
    made = cifar.create(
        name,
        num_classes or 100,
        drop_path=drop_path,
        input_size=input_size or (32, 32),
        others=(*ipe_vit.NETWORKS, *ipe_vit.DEIT_SHRUNK),
    )
    if options:
        raise UserError(f"limbeck:{name} takes no options, and {text!r} gives {', '.join(options)}. Leave them out.")
    return made


def _with_file(make: Callable[..., VisionModel], file: Path, num_classes: int | None) -> VisionModel:
    state = read_state_dict(file)
    model = make(num_classes=num_classes, pretrained=False)
    if num_classes is None:
        # The file knows its number of classes better than the architecture's default.
        theirs = head_classes(
            fit_state_dict(bare_network(model), state, getattr(model, "convert", None)), model.facts.num_classes
        )
        if theirs is not None:
            model = make(num_classes=theirs, pretrained=False)
    notes = load_weights(
        bare_network(model), file, state=state, new_head=num_classes, convert=getattr(model, "convert", None)
    )
    model.provenance.notes += notes
    model.provenance.licence = "unknown"
    model.provenance.source = str(file)
    model.provenance.weights_sha256 = weights_hash(model)
    return model


def _open_run(
    folder: Path,
    text: str,
    num_classes: int | None,
    pretrained: bool,
    input_size: tuple[int, int] | None,
    drop_path: float,
) -> VisionModel:
    record = _record(folder)
    model = rebuild(record["rebuild"], num_classes=num_classes, input_size=input_size, drop_path=drop_path, text=text)
    made_of = record["rebuild"]
    made_name = made_of.get("name") or made_of.get("factory") or "configuration"
    architecture = write_call(f"{made_of['library']}:{made_name}", made_of.get("options", {}))
    model.facts = dataclasses.replace(model.facts, name=text, architecture=architecture)
    model.mean.copy_(torch.tensor(record["mean"]).view_as(model.mean))
    model.std.copy_(torch.tensor(record["std"]).view_as(model.std))
    model.interpolation = record["interpolation"]
    if not pretrained:
        return model
    file, state = read_weights(folder, record)
    model.provenance.notes += load_weights(
        bare_network(model), file, state=state, new_head=num_classes, convert=getattr(model, "convert", None)
    )
    model.provenance.licence = record["licence"]
    model.provenance.source = record["source"]
    model.provenance.weights_sha256 = weights_hash(model)
    return model


def _record(folder: Path) -> dict[str, Any]:
    if read_record(folder, ()).get("task") == "detection":
        raise UserError(
            f"{folder} holds a detector, and a classifier is needed here. Name a run of an image classifier, or a model."
        )
    return read_record(folder, _NEEDED)
