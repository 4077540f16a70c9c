"""Which of transformers' detectors are known here, and which adapter reads each."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from limbeck.detection import Resize

_HOME = "limbeck.models.detection.transformers"


def _in_ratio(config: Any) -> Resize:
    return Resize(800, 1333)


def _stretched(config: Any) -> Resize:
    return Resize(640, 640, stretch=True)


def _as_the_backbone(config: Any) -> Resize:
    return Resize(*_sides(config.backbone_config.image_size), stretch=True)


def _inside_the_square(config: Any) -> Resize:
    return Resize(*_sides(config.image_size))


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))


@dataclass(frozen=True)
class Family:
    """One model type.

    Attributes:
        adapter: module and class of its adapter.
        architectures: the library's classes, the usual one first.
        resize: from a configuration, the size at which published weights want to see an image.
    """

    adapter: tuple[str, str]
    architectures: tuple[str, ...]
    resize: Callable[[Any], Resize]

    def load(self) -> Any:
        """The adapter's class."""
        module, name = self.adapter
        return getattr(importlib.import_module(f"{_HOME}.{module}"), name)


FAMILIES = {
    "yolos": Family(("yolos", "YolosDetector"), ("YolosForObjectDetection",), _in_ratio),
    "detr": Family(("detr", "DetrDetector"), ("DetrForObjectDetection",), _in_ratio),
    "rt_detr": Family(("rt_detr", "RTDetrDetector"), ("RTDetrForObjectDetection",), _stretched),
    "rt_detr_v2": Family(("rt_detr", "RTDetrDetector"), ("RTDetrV2ForObjectDetection",), _stretched),
    "d_fine": Family(("rt_detr", "DFineDetector"), ("DFineForObjectDetection",), _stretched),
    "lw_detr": Family(("lw_detr", "LwDetrDetector"), ("LwDetrForObjectDetection",), _as_the_backbone),
    "rf_detr": Family(
        ("lw_detr", "RfDetrDetector"), ("RfDetrForObjectDetection", "RfDetrForInstanceSegmentation"), _as_the_backbone
    ),
    "mask2former": Family(("mask_queries", "MaskQueryDetector"), ("Mask2FormerForUniversalSegmentation",), _in_ratio),
    "maskformer": Family(("mask_queries", "MaskQueryDetector"), ("MaskFormerForInstanceSegmentation",), _in_ratio),
    "eomt": Family(("mask_queries", "MaskQueryDetector"), ("EomtForUniversalSegmentation",), _inside_the_square),
    "eomt_dinov3": Family(
        ("mask_queries", "MaskQueryDetector"), ("EomtDinov3ForUniversalSegmentation",), _inside_the_square
    ),
}
