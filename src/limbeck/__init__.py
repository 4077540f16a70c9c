"""Limbeck makes small vision models out of large ones.

The verbs `distill`, `compare`, `train`, `evaluate`, `predict`, `export`, `synthesize`, `statistics`, `report` and
`methods` are also commands; `Distiller` and
`DetectionDistiller` are for people with a training loop of their own; `load_model` and `load_detector` are the doors to every
model by its name.
"""

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

__version__ = "0.1.0"

if TYPE_CHECKING:
    from limbeck.distiller import DetectionDistiller as DetectionDistiller
    from limbeck.distiller import Distiller as Distiller
    from limbeck.models.detection.door import load_detector as load_detector
    from limbeck.models.door import load_model as load_model
    from limbeck.verbs.compare import compare as compare
    from limbeck.verbs.distill import distill as distill
    from limbeck.verbs.evaluate import evaluate as evaluate
    from limbeck.verbs.export import export as export
    from limbeck.verbs.methods import methods as methods
    from limbeck.verbs.predict import predict as predict
    from limbeck.verbs.report import report as report
    from limbeck.verbs.statistics import statistics as statistics
    from limbeck.verbs.synthesize import synthesize as synthesize
    from limbeck.verbs.train import train as train

_PLACES = {
    "DetectionDistiller": "limbeck.distiller",
    "Distiller": "limbeck.distiller",
    "load_detector": "limbeck.models.detection.door",
    "load_model": "limbeck.models.door",
    **{
        verb: f"limbeck.verbs.{verb}"
        for verb in (
            "compare",
            "distill",
            "evaluate",
            "export",
            "methods",
            "predict",
            "report",
            "statistics",
            "synthesize",
            "train",
        )
    },
}

__all__ = [
    "DetectionDistiller",
    "Distiller",
    "__version__",
    "compare",
    "distill",
    "evaluate",
    "export",
    "load_detector",
    "load_model",
    "methods",
    "predict",
    "report",
    "statistics",
    "synthesize",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


# timm learns of our networks when it is imported, or now where it has been: importing it here would take seconds.
wrapt.register_post_import_hook("limbeck.models.ipe_vit:tell_timm", "timm")
