"""The names by which models are asked for, checked without importing torch.

A model is `NAME` or `timm:NAME` (timm), `torchvision:NAME`, `hf:NAME-OR-FOLDER` (transformers), `limbeck:NAME` (our
own networks), a run's folder, or `package.module:factory`. `NAME@weights.safetensors` takes the weights from a file.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limbeck.errors import UserError

ModelKind = Literal["timm", "torchvision", "hf", "limbeck", "run", "factory"]

MODEL_FILE = "model.json"
"""The small file of a run's folder from which its network is rebuilt."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth")
"""Files that may hold weights; of the latter two only those made of nothing but tensors can be read."""

_PREFIXES: tuple[ModelKind, ...] = ("timm", "torchvision", "hf", "limbeck")
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]*")
_FORMS = (
    "A model is a timm name (deit_tiny_patch16_224), torchvision:NAME, hf:NAME-OR-FOLDER, limbeck:NAME, a run's folder "
    "or package.module:factory, optionally followed by @weights.safetensors."
)


@dataclass(frozen=True)
class ModelName:
    """A model's name, taken apart.

    Attributes:
        kind: which adapter opens it.
        name: the part that the adapter understands; for a run, the folder that holds `model.json`.
        weights: the file after `@`, if any.
        text: what the user wrote.
    """

    kind: ModelKind
    name: str
    weights: Path | None
    text: str


def parse_model_name(text: str) -> ModelName:
    """Take a model's name apart and check all that can be checked without its library.

    Raises:
        FileNotFoundError: the weights file or the folder does not exist.
        UserError: the name has no meaning, the folder is no run, or the weights file is of a kind that is not read.
    """
    folder = Path(text).expanduser()
    if folder.is_dir() and (folder / MODEL_FILE).is_file():
        return ModelName("run", str(folder), None, text)
    name, weights = _split_weights(text)
    return ModelName(*_kind_and_name(name, text), weights, text)


def has_own_weights(text: str) -> bool:
    """Whether a name says which weights it means: a timm tag, a hub name, a run or a weights file."""
    parsed = parse_model_name(text)
    if parsed.weights is not None or parsed.kind in ("run", "hf"):
        return True
    return parsed.kind == "timm" and "." in parsed.name


def _split_weights(text: str) -> tuple[str, Path | None]:
    name, at, file = text.partition("@")
    prefix, _, folder = text.partition(":")
    if not at or (prefix == "hf" and Path(folder).expanduser().is_dir()):
        return text, None
    if not file or not name:
        raise UserError(f"{text!r} names {'no weights file after' if name else 'no model before'} the @. {_FORMS}")
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"The weights file {path}, named in {text!r}, does not exist.")
    if path.suffix not in WEIGHT_SUFFIXES:
        raise UserError(
            f"{path} is not a weights file that is read here: expected .safetensors, or a .pt or .pth that holds "
            f"nothing but tensors, and it ends in {path.suffix or 'nothing'!r}. A pickle may run code when it is "
            "opened; convert it on a machine you trust: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')."
        )
    return name, path


def _kind_and_name(name: str, text: str) -> tuple[ModelKind, str]:
    prefix, colon, rest = name.partition(":")
    for kind in _PREFIXES:
        if colon and prefix == kind:
            if not rest:
                raise UserError(f"{text!r} names no model after {kind}:. {_FORMS}")
            return kind, str(Path(rest).expanduser()) if kind == "hf" and rest.startswith("~") else rest
    if _FACTORY.fullmatch(name):
        return "factory", name
    folder = Path(name).expanduser()
    if _looks_like_path(name):
        if not folder.exists():
            raise FileNotFoundError(f"The model folder {folder} does not exist. {_FORMS}")
        raise UserError(_no_run(folder))
    if not _BARE.fullmatch(name):
        raise UserError(f"{text!r} is not a model's name. {_FORMS}")
    return "timm", name


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~")) or "/" in name or os.sep in name


def _no_run(folder: Path) -> str:
    if folder.is_file():
        return f"{folder} is a file, not a model. Say which model the weights belong to: MODEL_NAME@{folder}."
    inner = sorted(child.parent for child in folder.glob(f"*/{MODEL_FILE}"))
    hint = (
        f"These folders inside it do: {', '.join(map(str, inner[:5]))}." if inner else "A finished run's folder does."
    )
    hub = f" For a folder saved by transformers, write hf:{folder}." if (folder / "config.json").is_file() else ""
    return f"The folder {folder} holds no {MODEL_FILE}, so it is no model. {hint}{hub}"
