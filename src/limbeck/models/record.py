"""A run's folder on disk: `model.json`, and beside it one safetensors file whose SHA-256 it holds; nothing is ever run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from limbeck.errors import UserError
from limbeck.files import atomic_write, whole_or_nothing
from limbeck.models.names import MODEL_FILE
from limbeck.models.weights import State, bare_network, file_hash, read_state_dict


def write_weights(model: nn.Module, folder: Path, stem: str) -> dict[str, str]:
    """Write the bare network's tensors to `<stem>.safetensors`, whole or not at all.

    Returns:
        What the record says about the file: its name (`weights`) and its hash (`sha256`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}.safetensors"
    # Clones, since safetensors refuses tensors that share memory (tied weights).
    state = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in bare_network(model).state_dict().items()
    }
    with whole_or_nothing(file) as partial:
        save_file(state, partial, metadata={"format": "pt"})
        digest = file_hash(partial)
    return {"weights": file.name, "sha256": digest}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `model.json`, whole or not at all."""
    with atomic_write(folder / MODEL_FILE) as out:
        out.write(json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")


def read_record(folder: Path, needed: Sequence[str]) -> dict[str, Any]:
    """What `model.json` says.

    Args:
        folder: a run's folder.
        needed: keys that it must have.

    Raises:
        UserError: it is no JSON or lacks one of them.
    """
    path = folder / MODEL_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not readable JSON ({error}). It is written by a finished run; restore it or run again."
        ) from error
    record = record if isinstance(record, dict) else {}
    missing = [key for key in needed if key not in record]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; it was not written by this version of Limbeck.")
    found: dict[str, Any] = record
    return found


def read_weights(folder: Path, record: dict[str, Any]) -> tuple[Path, State]:
    """The weights file that a record names, and its tensors.

    Raises:
        FileNotFoundError: it does not exist.
        UserError: it lies outside the folder, cannot be read, or is not the file that the record was written for.
    """
    file = folder / record["weights"]
    if file.parent != folder:
        raise UserError(
            f"{folder / MODEL_FILE} names weights outside its folder ({record['weights']}); they are not opened."
        )
    if not file.is_file():
        raise FileNotFoundError(f"The weights file {file}, named in {folder / MODEL_FILE}, does not exist.")
    # The file's own reading error says more than a differing hash does.
    state = read_state_dict(file)
    if file_hash(file) != record["sha256"]:
        raise UserError(
            f"{file} is not the file that {folder / MODEL_FILE} was written for: its SHA-256 differs. "
            "Restore it from the run."
        )
    return file, state
