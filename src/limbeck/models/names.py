"""The names by which models are asked for, checked without importing torch.

A model is `NAME` or `timm:NAME` (timm), `torchvision:NAME`, `hf:NAME-OR-FOLDER` (transformers), `limbeck:NAME` (our
own networks), a run's folder, or `package.module:factory`. `NAME@weights.safetensors` takes the weights from a file.
timm's models, our own and factories take options, as in `vit_tiny_patch16_224(depth=6)@weights.safetensors`.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.call_text import parse_options, split_call, split_joined
from limbeck.errors import UserError

ModelKind = Literal["timm", "torchvision", "hf", "limbeck", "run", "factory"]

MODEL_FILE = "model.json"
"""The small file of a run's folder from which its network is rebuilt."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth")
"""Files that may hold weights; of the latter two only those made of nothing but tensors can be read."""

JOINER = " + "
"""Between the names of several teachers."""

SET_ELSEWHERE = {
    "num_classes": "The number of classes is that of your images' labels; in Python, load_model has an argument for it.",
    "pretrained": "Use --pretrained (--student_pretrained for a student), or load_model's argument pretrained.",
    "input_size": "Use --input_size (--student_size and --teacher_size when distilling), or load_model's input_size.",
    "drop_path": "Use --drop_path, or load_model's argument drop_path.",
}
"""Options that are no part of a model's name, with what is used instead."""

_TAKE_OPTIONS: tuple[ModelKind, ...] = ("timm", "limbeck", "factory")
_PREFIXES: tuple[ModelKind, ...] = ("timm", "torchvision", "hf", "limbeck")
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]*")
_FORMS = (
    "A model is a timm name (deit_tiny_patch16_224), torchvision:NAME, hf:NAME-OR-FOLDER, limbeck:NAME, a run's folder "
    "or package.module:factory, optionally followed by options in parentheses and by @weights.safetensors."
)


@dataclass(frozen=True)
class ModelName:
    """A model's name, taken apart.

    Attributes:
        kind: which adapter opens it.
        name: the part that the adapter understands; for a run, the folder that holds `model.json`.
        weights: the file after `@`, if any.
        text: what the user wrote.
        options: those in parentheses; plain values, tuples as lists since `model.json` cannot tell them apart.
    """

    kind: ModelKind
    name: str
    weights: Path | None
    text: str
    options: dict[str, Any] = field(default_factory=dict)


def parse_model_name(text: str) -> ModelName:
    """Take a model's name apart and check all that can be checked without its library.

    Raises:
        FileNotFoundError: the weights file or the folder does not exist.
        UserError: the name has no meaning, the folder is no run, the weights file is of a kind that is not read, or the
            options cannot be read or given here.
    """
    if is_run(text):
        return ModelName("run", str(Path(text).expanduser()), None, text)
    name, arguments, file = split_name(text)
    weights = weights_file(file, name, text) if file is not None else None
    if arguments and is_run(name):
        raise UserError(_no_options(text, "runs' folders"))
    kind, name = _kind_and_name(name, text)
    options = {key: tuples_as_lists(value) for key, value in parse_options(arguments, text).items()}
    if options and kind not in _TAKE_OPTIONS:
        raise UserError(_no_options(text, "transformers' models" if kind == "hf" else f"{kind}'s models"))
    refuse_options(options, SET_ELSEWHERE, text)
    return ModelName(kind, name, weights, text, options)


def split_model_names(text: str) -> tuple[str, ...]:
    """The names of several models joined by ` + `; one where there is no such sign, or where it is part of a path that exists.

    Raises:
        UserError: a bracket or quote is not closed, or a name is missing.
    """
    file = text.partition("@")[2]
    if JOINER not in text or _is_folder(text.removeprefix("hf:")) or (file and Path(file).expanduser().is_file()):
        return (text,)
    names = tuple(part.strip() for part in split_joined(text, JOINER, "model"))
    if not all(names):
        raise UserError(f"{text!r} joins models with ' + ' and lacks a name. Write NAME + NAME.")
    return names


def refuse_options(options: dict[str, Any], elsewhere: dict[str, str], text: str) -> None:
    """Refuse options of a model's name that have another place.

    Args:
        options: those of the name.
        elsewhere: option -> what to do instead.
        text: the name the user gave.

    Raises:
        UserError: one of them is given.
    """
    for option in options:
        if option in elsewhere:
            raise UserError(f"{option} is no option of a model's name, and {text!r} gives it. {elsewhere[option]}")


def file_stem(text: str) -> str:
    """A model's name as a part of names of files and folders: letters, digits, `_` and `.`, 60 characters at most."""
    name, arguments = (text, "") if _is_folder(text) else split_name(text)[:2]
    return re.sub(r"[^A-Za-z0-9_.]+", "_", (Path(name).name or name) + arguments)[:60].strip("_")


def has_own_weights(text: str) -> bool:
    """Whether a name says which weights it means: a timm tag, a hub name, a run or a weights file."""
    parsed = parse_model_name(text)
    if parsed.weights is not None or parsed.kind in ("run", "hf"):
        return True
    return parsed.kind == "timm" and "." in parsed.name


def is_run(text: str) -> bool:
    """Whether a name is the folder of a finished run."""
    # os.path, since pathlib raises on names too long to be files, which options may make.
    return os.path.isfile(os.path.join(os.path.expanduser(text), MODEL_FILE))


def split_name(text: str, forms: str = _FORMS) -> tuple[str, str, str | None]:
    """The name, its options with their parentheses, and the file after the @; a path's parentheses are its own.

    Args:
        text: what the user wrote.
        forms: the sentence that says what names look like, for the message.

    Raises:
        UserError: a bracket is not closed, or something else than a file follows the options.
    """
    plain, at, file = text.partition("@")
    whole = (plain, "", file if at else None)
    before = text.partition("(")[0]
    prefix, _, folder = text.partition(":")
    if prefix == "hf":
        if _is_folder(folder):
            return text, "", None
        is_path = folder.startswith((".", "~", "/", os.sep)) or _is_folder(plain.removeprefix("hf:"))
    else:
        is_path = looks_like_path(before)
    if is_path or before == text or "@" in before:
        return whole
    name, arguments, rest = split_call(text, "model")
    rest = rest.strip()
    if rest and not rest.startswith("@"):
        raise UserError(f"{text!r} is not a model's name: {rest!r} follows its options. {forms}")
    return name, arguments, rest[1:] if rest else None


def weights_file(file: str, name: str, text: str, forms: str = _FORMS) -> Path:
    """The weights file of `NAME@FILE`.

    Args:
        file: what follows the @.
        name: what stands before it.
        text, forms: as for `split_name`.

    Raises:
        FileNotFoundError: it does not exist.
        UserError: it is of a kind that is not read, or one of the two parts is missing.
    """
    if not file or not name:
        raise UserError(f"{text!r} names {'no weights file after' if name else 'no model before'} the @. {forms}")
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
    return path


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
    if looks_like_path(name):
        if not os.path.exists(folder):
            if "(" in name and _is_folder(name.partition("(")[0].rstrip()):
                raise UserError(_no_options(text, "folders"))
            raise FileNotFoundError(f"The model folder {folder} does not exist. {_FORMS}")
        raise UserError(no_run_in(folder))
    if not _BARE.fullmatch(name):
        raise UserError(f"{text!r} is not a model's name. {_FORMS}")
    return "timm", name


def looks_like_path(name: str) -> bool:
    """Whether a name can only be a file's or folder's."""
    return name.startswith((".", "~")) or "/" in name or os.sep in name


def _is_folder(name: str) -> bool:
    return os.path.isdir(os.path.expanduser(name))


def _no_options(text: str, whose: str) -> str:
    return (
        f"{text!r} gives options to {whose}, which take none. Options belong to timm's and limbeck's models and to "
        "factories, as in vit_tiny_patch16_224(depth=6)."
    )


def tuples_as_lists(value: Any) -> Any:
    """A plain value as JSON would give it back."""
    if isinstance(value, dict):
        return {key: tuples_as_lists(item) for key, item in value.items()}
    return [tuples_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def no_run_in(folder: Path) -> str:
    """The message for a folder (or file) that exists and is no run's."""
    if folder.is_file():
        return f"{folder} is a file, not a model. Say which model the weights belong to: MODEL_NAME@{folder}."
    inner = sorted(child.parent for child in folder.glob(f"*/{MODEL_FILE}"))
    hint = (
        f"These folders inside it do: {', '.join(map(str, inner[:5]))}." if inner else "A finished run's folder does."
    )
    hub = f" For a folder saved by transformers, write hf:{folder}." if (folder / "config.json").is_file() else ""
    return f"The folder {folder} holds no {MODEL_FILE}, so it is no model. {hint}{hub}"
