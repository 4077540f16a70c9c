"""The mobile vision transformer `ipe_vit_*`, its improved form, and the shrunk DeiTs they are compared with, by name and size.

Names and sizes are known here without importing torch; `registration` tells timm about them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.models.base import VisionModel

IPE_VIT: dict[str, dict[str, Any]] = {
    "ipe_vit_75m": {"width": 0.5, "embed_dim": 128, "depth": 2},
    "ipe_vit_150m": {"width": 0.5, "embed_dim": 192, "depth": 3},
    "ipe_vit_300m": {"width": 0.75, "embed_dim": 192, "depth": 6},
    "ipe_vit_600m": {"width": 1.0, "embed_dim": 256, "depth": 8},
}
"""Sizes by multiply-adds at 224 pixels (inferred: the paper's are not known)."""

SMALL_IMAGES: dict[str, Any] = {"stem_stride": 4, "img_size": 32}
"""What makes a network for 32 pixels of each: the stem's first two halvings left out."""

_PLUS: dict[str, Any] = {"stem": "residual", "branch_expansion": 2.0}

IPE_VIT_PLUS: dict[str, dict[str, Any]] = {
    "ipe_vit_plus_75m": {"width": 0.25, "embed_dim": 128, "depth": 2, **_PLUS},
    "ipe_vit_plus_150m": {"width": 0.5, "embed_dim": 128, "depth": 2, **_PLUS},
    "ipe_vit_plus_300m": {"width": 0.625, "embed_dim": 192, "depth": 3, **_PLUS},
    "ipe_vit_plus_600m": {"width": 1.0, "embed_dim": 256, "depth": 3, **_PLUS},
    "ipe_vit_plus_75m_32": {"width": 0.5, "embed_dim": 128, "depth": 1, **_PLUS, **SMALL_IMAGES},
    "ipe_vit_plus_150m_32": {"width": 0.75, "embed_dim": 128, "depth": 1, **_PLUS, **SMALL_IMAGES},
    "ipe_vit_plus_300m_32": {"width": 1.0, "embed_dim": 192, "depth": 2, **_PLUS, **SMALL_IMAGES},
    "ipe_vit_plus_600m_32": {"width": 1.0, "embed_dim": 256, "depth": 6, **_PLUS, **SMALL_IMAGES},
}
"""Our improvement at no more multiply-adds than the `ipe_vit` of its name: a residual stem without squeeze-and-excitation that
reduces small images early, paid for by thinner branches and a shorter trunk."""

NETWORKS: dict[str, dict[str, Any]] = {
    **IPE_VIT,
    **{f"{name}_32": {**size, **SMALL_IMAGES} for name, size in IPE_VIT.items()},
    **IPE_VIT_PLUS,
}
"""Every `ipe_vit` by name, with the arguments of `IpeVit`."""

_DEIT_SMALL_IMAGES: dict[str, Any] = {"patch_size": 4, "img_size": 32}

DEIT_SHRUNK: dict[str, dict[str, Any]] = {
    "deit_shrunk_75m": {"embed_dim": 40, "depth": 10, "num_heads": 2},
    "deit_shrunk_150m": {"embed_dim": 64, "depth": 9, "num_heads": 2},
    "deit_shrunk_300m": {"embed_dim": 128, "depth": 6, "num_heads": 4},
    "deit_shrunk_600m": {"embed_dim": 128, "depth": 12, "num_heads": 4},
    "deit_shrunk_75m_32": {"embed_dim": 48, "depth": 10, "num_heads": 2, **_DEIT_SMALL_IMAGES},
    "deit_shrunk_150m_32": {"embed_dim": 72, "depth": 9, "num_heads": 3, **_DEIT_SMALL_IMAGES},
    "deit_shrunk_300m_32": {"embed_dim": 128, "depth": 6, "num_heads": 4, **_DEIT_SMALL_IMAGES},
    "deit_shrunk_600m_32": {"embed_dim": 128, "depth": 12, "num_heads": 4, **_DEIT_SMALL_IMAGES},
}
"""DeiT with narrower and fewer blocks, at the multiply-adds of the `ipe_vit` of its name (from 5 % less to 8 % more): a
class token and patches of 16 pixels (197 tokens at 224), or of 4 for 32-pixel images (65 tokens)."""


NAMES = frozenset((*NETWORKS, *DEIT_SHRUNK))


def tell_timm(_timm: Any) -> None:
    """Register every network with timm; called by the import hook once timm has been imported."""
    importlib.import_module("limbeck.models.ipe_vit.registration")


def create(
    name: str,
    *,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    drop_path: float = 0.0,
    text: str | None = None,
    options: dict[str, Any] | None = None,
) -> "VisionModel":
    """One of these networks behind our interface, with random weights.

    Args:
        name: one of `NAMES`.
        num_classes: K of the logits; 1000 if None.
        input_size: (height, width) in pixels that images are resized to; None is the name's own.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
        text: the name the user gave, for facts and messages.
        options: others of `IpeVit`'s (or timm's `VisionTransformer`'s) arguments than the name stands for.

    Raises:
        UserError: an option is unknown or impossible.
    """
    text = text or f"limbeck:{name}"
    if name in NETWORKS:
        from limbeck.models.ipe_vit.adapter import IpeVitModel

        classes = 1000 if num_classes is None else num_classes
        return IpeVitModel(name, classes, input_size, drop_path, text, options or {})
    from limbeck.models import timm_models

    return timm_models.create(
        name,
        text=text,
        num_classes=num_classes,
        pretrained=False,
        input_size=input_size,
        drop_path=drop_path,
        options=options or {},
    )
