"""What was measured about an exported file, as JSON beside it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.files import atomic_write

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_record(record: "DataclassInstance", path: str | Path) -> Path:
    """Write a dataclass as FILE.json beside FILE; a number that is not finite becomes null.

    Returns:
        The JSON file.
    """
    path = Path(path)
    beside = path.with_name(f"{path.name}.json")
    with atomic_write(beside) as file:
        file.write((json.dumps(_finite(dataclasses.asdict(record)), indent=2, allow_nan=False) + "\n").encode())
    return beside


def _finite(value: Any) -> Any:
    """The same value with None for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
