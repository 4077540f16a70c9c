"""Reading weights from files, without ever running what is in them, and fitting them to a network.

A safetensors file is read after a look at its header; a `.pt` or `.pth` only if `torch.load(weights_only=True)`
finds nothing but tensors in it.
"""

import hashlib
import json
import pickle
import socket
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.errors import UserError

State = dict[str, Tensor]

PREFIXES = ("student.", "model.", "module.", "network.", "backbone.", "_orig_mod.")
"""What training frameworks put before the names of a network's tensors."""

_HEADS = frozenset(("head", "heads", "head_dist", "fc", "classifier"))
_MAX_HEADER = 100_000_000
_PICKLE_MAGIC = b"\x80"
_ZIP_MAGIC = b"PK\x03\x04"
_HOW_TO_CONVERT = (
    "A pickle may run code when it is opened, so it is not opened here; on a machine you trust, save its state_dict "
    "with safetensors.torch.save_file and give that .safetensors file."
)


def read_state_dict(path: str | Path) -> State:
    """All tensors of a weights file, on the CPU.

    Args:
        path: a `.safetensors` file, or a `.pt` or `.pth` that holds a flat dictionary of tensors.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is truncated, is another format than its name says, or holds other things than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The weights file {path} does not exist.")
    if path.suffix != ".safetensors":
        return _read_torch_file(path)
    _check_safetensors_header(path)
    try:
        state: State = load_file(path)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}). Fetch or save it again.") from error
    return state


@dataclass
class Fit:
    """How well a file's tensors fit a network.

    Attributes:
        state: the tensors under the network's names, as far as they fit.
        missing: the network's names that the file does not have.
        unexpected: the file's names that the network does not have.
        mismatched: names with two shapes, (file's, network's).
        source: the file's tensors, prefixes of their names taken off.
        notes: what was done to make it fit.
    """

    state: State
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    source: State
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Every tensor of the network is given, in its shape, and nothing is left over."""
        return not (self.missing or self.unexpected or self.mismatched)


def fit_state_dict(network: nn.Module, state: State, convert: Callable[[State], State] | None = None) -> Fit:
    """Match a file's tensors with a network's, taking common prefixes off where that makes more of them fit.

    Args:
        network: the bare network.
        state: the file's tensors.
        convert: the library's own conversion of older files to today's names and of positional embeddings to
            another grid; tried where the names do not fit as they are.
    """
    target = network.state_dict()
    fit = max(_without_prefixes(target, state), key=_quality)
    if convert is None or fit.complete:
        return fit
    # The library's converter leaves shapes it cannot resize alone, so it can only improve a fit.
    try:
        converted = _compare(target, {k: v for k, v in convert(dict(fit.source)).items() if isinstance(v, Tensor)})
    except (KeyError, RuntimeError, ValueError, IndexError, AttributeError, TypeError, AssertionError):
        return fit
    if _quality(converted) <= _quality(fit):
        return fit
    converted.notes = [*fit.notes, "the weights were converted to this network's names or input size by its library"]
    return converted


def load_weights(
    network: nn.Module,
    path: str | Path,
    *,
    state: State | None = None,
    new_head: int | None = None,
    convert: Callable[[State], State] | None = None,
) -> list[str]:
    """Put a file's weights into a network, all or nothing but for a classifier of another size.

    Args:
        network: the bare network, changed in place.
        path: the weights file, also named in errors.
        state: its tensors, where they are already read.
        new_head: the number of classes the user asked for: a classifier of the file with another number is left out
            and the network's own, freshly initialised, stays. None accepts no such difference.
        convert: see `fit_state_dict`.

    Returns:
        Sentences about what was done, for `Provenance.notes`.

    Raises:
        UserError: the file belongs to another network.
    """
    fit = fit_state_dict(network, read_state_dict(path) if state is None else state, convert)
    notes = list(fit.notes)
    if new_head is not None:
        old = head_classes(fit, new_head)
        if old is not None:
            fit.mismatched = {}
            notes.append(f"head replaced: {old} -> {new_head} classes, freshly initialised")
        elif fit.missing and not fit.unexpected and not fit.mismatched and all(map(_is_head, fit.missing)):
            fit.missing = []
            notes.append(f"the weights have no classifier: a head of {new_head} classes was freshly initialised")
    if not fit.complete:
        raise UserError(_mismatch_message(path, network, fit))
    network.load_state_dict(fit.state, strict=False)
    return notes


def head_classes(fit: Fit, num_classes: int) -> int | None:
    """The file's number of classes, where nothing but the classifier's size is different; None otherwise."""
    if not fit.mismatched or fit.missing or fit.unexpected:
        return None
    theirs = {shape[0] for shape, _ in fit.mismatched.values() if shape}
    same_elsewhere = all(
        ours and ours[0] == num_classes and given[1:] == ours[1:] for given, ours in fit.mismatched.values()
    )
    return theirs.pop() if same_elsewhere and len(theirs) == 1 else None


def bare_network(model: nn.Module) -> nn.Module:
    """The library's own network inside an adapter, whose names its weights are stored under."""
    network = getattr(model, "network", None)
    names = model.state_dict().keys()
    inside = isinstance(network, nn.Module) and all(name.startswith("network.") for name in names)
    return network if inside and isinstance(network, nn.Module) else model


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over the names (sorted), dtypes, shapes and bytes of a network's tensors; adapters do not change it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(bare_network(module).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # numpy knows no bfloat16, so every tensor is hashed as the bytes that it consists of.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_unreachable(host: str) -> bool:
    """Whether a host's name cannot even be looked up and no proxy could do it; libraries would retry for a minute."""
    if urllib.request.getproxies():
        return False
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return True
    return False


def _read_torch_file(path: Path) -> State:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors. {_HOW_TO_CONVERT}") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a file of tensors; it is truncated or no weights file. Fetch it again."
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        inner = [key for key, value in content.items() if isinstance(value, dict)] if isinstance(content, dict) else []
        hint = f" (it has the entries {', '.join(map(str, inner))})" if inner else ""
        raise UserError(
            f"{path} is not a flat dictionary of tensors{hint}; it looks like a training checkpoint. {_HOW_TO_CONVERT}"
        )
    return dict(content)


def _check_safetensors_header(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        # A header's length is small, so its high bytes are zero; a pickle's or a zip's first bytes give a huge number.
        if start[:4] == _ZIP_MAGIC or (
            start[:1] == _PICKLE_MAGIC and start[1:2] in b"\x02\x03\x04\x05" and length > _MAX_HEADER
        ):
            raise UserError(f"{path} is called .safetensors but is a pickle. {_HOW_TO_CONVERT}")
        if len(start) < 8 or length > _MAX_HEADER:
            raise UserError(
                f"{path} is not a safetensors file: its first 8 bytes give no header length. Fetch or save it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = "is truncated inside its header" if size < 8 + length else "has a header that is not safetensors' JSON"
        raise UserError(f"{path} {reason}. Fetch or save it again.") from error
    if size < needed:
        raise UserError(
            f"{path} is truncated: its header promises {needed} bytes and it has {size}. Fetch or save it again."
        )


def _without_prefixes(target: State, state: State, notes: tuple[str, ...] = (), depth: int = 3) -> list[Fit]:
    fits = [_compare(target, state, notes)]
    for prefix in PREFIXES if depth else ():
        inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if inside:
            left = len(state) - len(inside)
            note = f"names in the weights file were shortened by {prefix!r}" + (
                f", {left} other tensors ignored" if left else ""
            )
            fits += _without_prefixes(target, inside, (*notes, note), depth - 1)
    return fits


def _compare(target: State, state: State, notes: tuple[str, ...] = ()) -> Fit:
    both = [name for name in target if name in state]
    return Fit(
        state={name: state[name] for name in both if state[name].shape == target[name].shape},
        missing=[name for name in target if name not in state],
        unexpected=[name for name in state if name not in target],
        mismatched={
            name: (tuple(state[name].shape), tuple(target[name].shape))
            for name in both
            if state[name].shape != target[name].shape
        },
        source=state,
        notes=list(notes),
    )


def _is_head(name: str) -> bool:
    return not _HEADS.isdisjoint(name.split(".")[:-1])


def _quality(fit: Fit) -> tuple[int, int, int]:
    return len(fit.state), len(fit.mismatched), -len(fit.unexpected)


def _mismatch_message(path: str | Path, network: nn.Module, fit: Fit) -> str:
    total = len(network.state_dict())
    parts = []
    if fit.missing:
        parts.append(f"{len(fit.missing)} missing ({_examples(fit.missing)})")
    if fit.unexpected:
        parts.append(f"{len(fit.unexpected)} unexpected ({_examples(fit.unexpected)})")
    if fit.mismatched:
        shapes = [
            f"{name} {'x'.join(map(str, a))} for {'x'.join(map(str, b))}" for name, (a, b) in fit.mismatched.items()
        ]
        parts.append(f"{len(fit.mismatched)} of another shape ({_examples(shapes)})")
    if len(fit.state) < 0.2 * total:
        cause = "The file most likely belongs to another architecture; name the model that it was saved from."
    elif fit.mismatched and not fit.missing:
        cause = "It is most likely another size, input size or number of classes of the same architecture."
    elif fit.missing and not fit.unexpected:
        cause = "The file most likely holds only a part of the network, or a smaller variant of it."
    else:
        cause = "It is most likely a variant of the same architecture (a deeper one, or one with other options)."
    return (
        f"The weights in {path} do not fit {type(network).__name__}: of its {total} tensors {len(fit.state)} fit; "
        f"{'; '.join(parts)}. {cause}"
    )


def _examples(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
