"""Distillation losses: pure functions of tensors, modules with parameters, and the methods a run is made of.

Names are resolved on first use, so that listing methods or refusing a misspelt one does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from limbeck.losses.catalogue import METHODS, MethodInfo
from limbeck.losses.names import MethodSpec, parse_methods

if TYPE_CHECKING:
    from limbeck.losses.base import DistillationLoss, Pairing
    from limbeck.losses.build import BuiltLoss, build_losses
    from limbeck.losses.class_names import (
        ClassMap,
        class_divergence,
        shared_classes,
        sigmoid_to_softmax,
        softmax_to_sigmoid,
    )
    from limbeck.losses.corner_kd import CornerKD, corner_kd_loss
    from limbeck.losses.cwd import CWD, cwd_loss
    from limbeck.losses.fgd import FGD, FocalGlobal, attention_loss, focal_loss, object_masks
    from limbeck.losses.fitnets import FitNets, fitnets_loss
    from limbeck.losses.kd import KD, kd_loss
    from limbeck.losses.ld import LD, ld_loss, valuable_region
    from limbeck.losses.manifold import Manifold, manifold_full, manifold_inter, manifold_intra, manifold_random
    from limbeck.losses.matching import Match, match_queries
    from limbeck.losses.mgd import MGD, MGDLoss
    from limbeck.losses.nkd import NKD, nkd_loss
    from limbeck.losses.noise_adaptation import NoiseAdaptation, noise_adaptation_loss
    from limbeck.losses.patch_attention import PatchAttention, patch_attention_loss
    from limbeck.losses.pkd import PKD, pkd_loss
    from limbeck.losses.query_kd import QueryKD
    from limbeck.losses.query_loss import soft_prediction_loss
    from limbeck.losses.reviewkd import AttentionFusion, ReviewKD, ReviewKDLoss, hcl_loss
    from limbeck.losses.roi_kd import RoIKD, region_box_loss, region_class_loss, region_mask_loss
    from limbeck.losses.shared_queries import SharedQueries, random_tokens
    from limbeck.losses.vitkd import ViTKD, ViTKDLoss

__all__ = [
    "CWD",
    "FGD",
    "KD",
    "LD",
    "METHODS",
    "MGD",
    "NKD",
    "PKD",
    "AttentionFusion",
    "BuiltLoss",
    "ClassMap",
    "CornerKD",
    "DistillationLoss",
    "FitNets",
    "FocalGlobal",
    "MGDLoss",
    "Manifold",
    "Match",
    "MethodInfo",
    "MethodSpec",
    "NoiseAdaptation",
    "Pairing",
    "PatchAttention",
    "QueryKD",
    "ReviewKD",
    "ReviewKDLoss",
    "RoIKD",
    "SharedQueries",
    "ViTKD",
    "ViTKDLoss",
    "attention_loss",
    "build_losses",
    "class_divergence",
    "corner_kd_loss",
    "cwd_loss",
    "fitnets_loss",
    "focal_loss",
    "hcl_loss",
    "kd_loss",
    "ld_loss",
    "manifold_full",
    "manifold_inter",
    "manifold_intra",
    "manifold_random",
    "match_queries",
    "nkd_loss",
    "noise_adaptation_loss",
    "object_masks",
    "parse_methods",
    "patch_attention_loss",
    "pkd_loss",
    "random_tokens",
    "region_box_loss",
    "region_class_loss",
    "region_mask_loss",
    "shared_classes",
    "sigmoid_to_softmax",
    "soft_prediction_loss",
    "softmax_to_sigmoid",
    "valuable_region",
]

_HOMES = {
    "base": ("DistillationLoss", "Pairing"),
    "build": ("BuiltLoss", "build_losses"),
    "class_names": ("ClassMap", "class_divergence", "shared_classes", "sigmoid_to_softmax", "softmax_to_sigmoid"),
    "corner_kd": ("CornerKD", "corner_kd_loss"),
    "cwd": ("CWD", "cwd_loss"),
    "fgd": ("FGD", "FocalGlobal", "attention_loss", "focal_loss", "object_masks"),
    "fitnets": ("FitNets", "fitnets_loss"),
    "kd": ("KD", "kd_loss"),
    "ld": ("LD", "ld_loss", "valuable_region"),
    "manifold": ("Manifold", "manifold_full", "manifold_inter", "manifold_intra", "manifold_random"),
    "matching": ("Match", "match_queries"),
    "mgd": ("MGD", "MGDLoss"),
    "nkd": ("NKD", "nkd_loss"),
    "noise_adaptation": ("NoiseAdaptation", "noise_adaptation_loss"),
    "patch_attention": ("PatchAttention", "patch_attention_loss"),
    "pkd": ("PKD", "pkd_loss"),
    "query_kd": ("QueryKD",),
    "query_loss": ("soft_prediction_loss",),
    "reviewkd": ("AttentionFusion", "ReviewKD", "ReviewKDLoss", "hcl_loss"),
    "shared_queries": ("SharedQueries", "random_tokens"),
    "roi_kd": ("RoIKD", "region_box_loss", "region_class_loss", "region_mask_loss"),
    "vitkd": ("ViTKD", "ViTKDLoss"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
