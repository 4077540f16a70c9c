"""The mobile vision transformer `ipe_vit_*` and the shrunk DeiTs it is compared with, by name and size.

Names and sizes are known here without importing torch; `registration` tells timm about them.
"""

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

NETWORKS: dict[str, dict[str, Any]] = {
    **IPE_VIT,
    **{f"{name}_32": {**size, **SMALL_IMAGES} for name, size in IPE_VIT.items()},
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

        return IpeVitModel(name, num_classes or 1000, input_size, drop_path, text, options or {})
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
