"""Classifiers of any library behind one interface: `load_model` opens one by its name.

Nothing heavy is imported before it is used, so that names can be checked without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.models.base import Provenance as Provenance
    from limbeck.models.base import VisionModel as VisionModel
    from limbeck.models.door import class_names_of as class_names_of
    from limbeck.models.door import load_model as load_model
    from limbeck.models.door import rebuild as rebuild
    from limbeck.models.door import save_model as save_model
    from limbeck.models.names import ModelName as ModelName
    from limbeck.models.names import parse_model_name as parse_model_name

_PLACES = {
    "ModelName": "limbeck.models.names",
    "Provenance": "limbeck.models.base",
    "VisionModel": "limbeck.models.base",
    "class_names_of": "limbeck.models.door",
    "load_model": "limbeck.models.door",
    "parse_model_name": "limbeck.models.names",
    "rebuild": "limbeck.models.door",
    "save_model": "limbeck.models.door",
}

__all__ = [
    "ModelName",
    "Provenance",
    "VisionModel",
    "class_names_of",
    "load_model",
    "parse_model_name",
    "rebuild",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'limbeck.models' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value
