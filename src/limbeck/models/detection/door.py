"""The door to every detector: opened by its name, saved to a folder, made again from what the folder says.

`model.json` holds how the network is made (`rebuild`), the size it wants, its classes, licence and source, and the name
and SHA-256 of the safetensors file beside it, which has the network's tensors under its library's names.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from limbeck.call_text import write_call
from limbeck.detection import name_pairs
from limbeck.errors import UserError
from limbeck.models.detection.base import Detector
from limbeck.models.detection.names import parse_detector_name
from limbeck.models.record import read_record, read_weights, write_record, write_weights
from limbeck.models.weights import State, load_weights, read_state_dict, weights_hash

_ADAPTERS = {
    "torchvision": "limbeck.models.detection.torchvision",
    "hf": "limbeck.models.detection.transformers",
    "transformers": "limbeck.models.detection.transformers",
}
_NEEDED = ("rebuild", "weights", "sha256", "class_names", "resize", "licence", "source")


def load_detector(
    name: str,
    *,
    class_names: tuple[str, ...] | None = None,
    pretrained: bool = True,
    short: int | None = None,
    long: int | None = None,
    backbone: str | None = None,
) -> Detector:
    """Open a detector by its name.

    Args:
        name: see `limbeck.models.detection.names`.
        class_names: in label order; None is the weights' own. Others than theirs replace the class heads, in which the
            rows of classes that both know are kept.
        pretrained: with the weights that the name stands for; a file after `@` and a backbone's run are always loaded.
        short: pixels of the shorter side of the images; None is the detector's own. For detectors that stretch their
            images, the height.
        long: the most pixels of the longer side, or the width.
        backbone: of torchvision's families: a classifier's name, or the folder of a classifier's run to start from.

    Returns:
        The detector in training mode, on the CPU.

    Raises:
        FileNotFoundError: a named file or folder does not exist.
        UserError: the name is unknown, or its weights cannot be fetched, read or fitted.
    """
    parsed = parse_detector_name(name)
    if parsed.kind == "run":
        if backbone is not None:
            raise UserError(
                f"{name} is a run, whose detector has its backbone already; leave the backbone {backbone!r} out."
            )
        return _open_run(Path(parsed.name), name, class_names, pretrained, short, long)
    detector: Detector = importlib.import_module(_ADAPTERS[parsed.kind]).create(
        parsed.name,
        text=name,
        class_names=class_names,
        pretrained=pretrained and parsed.weights is None,
        options=parsed.options,
        short=short,
        long=long,
        backbone=backbone,
    )
    if parsed.weights is not None:
        _load(detector, parsed.weights, read_state_dict(parsed.weights), None)
        detector.provenance.licence = "unknown"
        detector.provenance.source = str(parsed.weights)
        detector.provenance.weights_sha256 = weights_hash(detector)
    if class_names is not None and detector.facts.class_names != tuple(class_names):
        lost = [other for other in class_names if other not in detector.facts.class_names]
        raise UserError(
            f"{name} cannot have classes called {', '.join(map(repr, lost))}: transformers' configurations use such names for "
            "slots that are no class. Rename them in the data."
        )
    return detector


def save_detector(detector: Detector, folder: str | Path, stem: str = "student") -> None:
    """Write `<stem>.safetensors` and `model.json`, each whole or not at all; the folder is then a detector's name.

    Args:
        detector: its weights are copied to the CPU.
        folder: made where it does not exist.
        stem: the weights file's name without its suffix.
    """
    folder = Path(folder)
    record = {
        "name": detector.facts.name,
        "task": "detection",
        "rebuild": detector.rebuild,
        **write_weights(detector, folder, stem),
        "num_classes": detector.facts.num_classes,
        "class_names": list(detector.facts.class_names),
        "resize": dataclasses.asdict(detector.resize),
        "licence": detector.provenance.licence,
        "source": detector.provenance.source,
        # Imported by name: the face imports the verbs, which stand above the models.
        "limbeck_version": importlib.import_module("limbeck").__version__,
    }
    write_record(folder, record)


def rebuild(
    values: dict[str, Any],
    *,
    text: str | None = None,
    class_names: tuple[str, ...] | None = None,
    short: int | None = None,
    long: int | None = None,
) -> Detector:
    """Make the architecture that `Detector.rebuild` describes, with random weights and without the network.

    Args:
        values: that dictionary.
        text: the name for facts and messages; None is the architecture's.
        class_names, short, long: others than its own.

    Raises:
        UserError: the values name no library that is known here.
    """
    library = values.get("library")
    if library not in _ADAPTERS:
        raise UserError(
            f"A detector of the library {library!r} was saved by another version of Limbeck; this one cannot make it."
        )
    made: Detector = importlib.import_module(_ADAPTERS[library]).from_record(
        values, text=text or _architecture(values), class_names=class_names, short=short, long=long
    )
    return made


def class_names_of(name: str) -> tuple[str, ...] | None:
    """The class names of a run, or of the weights that a name stands for; None where only the data can say."""
    parsed = parse_detector_name(name)
    if parsed.kind == "run":
        return tuple(read_record(Path(parsed.name), _NEEDED)["class_names"])
    found: tuple[str, ...] | None = importlib.import_module(_ADAPTERS[parsed.kind]).class_names(parsed.name)
    return found


def _open_run(
    folder: Path,
    text: str,
    class_names: tuple[str, ...] | None,
    pretrained: bool,
    short: int | None,
    long: int | None,
) -> Detector:
    record = read_record(folder, _NEEDED)
    own = tuple(record["class_names"])
    detector = rebuild(record["rebuild"], text=text, class_names=class_names or own, short=short, long=long)
    detector.facts = dataclasses.replace(detector.facts, name=text, architecture=_architecture(record["rebuild"]))
    if not pretrained:
        return detector
    file, state = read_weights(folder, record)
    _load(detector, file, state, own)
    detector.provenance.licence = record["licence"]
    detector.provenance.source = record["source"]
    detector.provenance.weights_sha256 = weights_hash(detector)
    return detector


def _load(detector: Detector, file: Path, state: State, theirs: tuple[str, ...] | None) -> None:
    """Put a file's tensors into a detector; `theirs` are its class names, None where nobody recorded any."""
    # Adapters whose heads can take over rows of other classes have it; it also brings older files to today's names.
    prepare = getattr(detector, "prepare_state", None)
    state = state if prepare is None else prepare(state, theirs)
    detector.provenance.notes += load_weights(
        detector.network, file, state=state, convert=getattr(detector, "convert", None)
    )
    if theirs is not None and theirs != detector.facts.class_names:
        kept = len(name_pairs(detector.facts.class_names, theirs))
        detector.provenance.notes.append(
            f"class heads replaced: {len(theirs)} -> {detector.facts.num_classes} classes, {kept} of them kept"
        )


def _architecture(values: dict[str, Any]) -> str:
    name = values.get("name") or values.get("config", {}).get("model_type", "configuration")
    prefix = "hf" if values["library"] == "transformers" else values["library"]
    return write_call(f"{prefix}:{name}", values.get("options", {}))
