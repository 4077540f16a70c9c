"""Distillation losses: pure functions of tensors, modules with parameters, and the methods a run is made of.

Names are resolved on first use, so that listing methods or refusing a misspelt one does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from limbeck.losses.catalogue import METHODS, MethodInfo
from limbeck.losses.names import MethodSpec, parse_methods

if TYPE_CHECKING:
    from limbeck.losses.at import AttentionTransfer, at_loss
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
    from limbeck.losses.crd import CRD, crd_loss
    from limbeck.losses.cwd import CWD, cwd_loss
    from limbeck.losses.deit import DeiT, hard_distillation_loss
    from limbeck.losses.dist import DIST, dist_loss
    from limbeck.losses.dkd import DKD, dkd_loss
    from limbeck.losses.feature_kd import FeatureKD, cosine_smooth_l1
    from limbeck.losses.fgd import FGD, FocalGlobal, attention_loss, focal_loss, object_masks
    from limbeck.losses.fitnets import FitNets, fitnets_loss
    from limbeck.losses.function_matching import FunctionMatching
    from limbeck.losses.kd import KD, kd_loss
    from limbeck.losses.ld import LD, ld_loss, valuable_region
    from limbeck.losses.manifold import Manifold, manifold_full, manifold_inter, manifold_intra, manifold_random
    from limbeck.losses.maskedkd import MaskedKD, attended_patches
    from limbeck.losses.matching import Match, match_queries
    from limbeck.losses.mgd import MGD, MGDLoss
    from limbeck.losses.nkd import NKD, nkd_loss
    from limbeck.losses.noise_adaptation import NoiseAdaptation, noise_adaptation_loss
    from limbeck.losses.ofa_kd import OFAKD, ofa_loss
    from limbeck.losses.patch_attention import PatchAttention, patch_attention_loss
    from limbeck.losses.patch_relation import PatchRelation, patch_relation_loss
    from limbeck.losses.phi_s import phi_s_rotation
    from limbeck.losses.pkd import PKD, pkd_loss
    from limbeck.losses.query_kd import QueryKD
    from limbeck.losses.query_loss import soft_prediction_loss
    from limbeck.losses.reviewkd import AttentionFusion, ReviewKD, ReviewKDLoss, hcl_loss
    from limbeck.losses.rkd import RKD, rkd_loss
    from limbeck.losses.roi_kd import RoIKD, region_box_loss, region_class_loss, region_mask_loss
    from limbeck.losses.shared_queries import SharedQueries, random_tokens
    from limbeck.losses.sp import SP, sp_loss
    from limbeck.losses.spectralkd import SpectralKD, spectralkd_loss
    from limbeck.losses.standardised import Standardised, standardised_logits
    from limbeck.losses.unic import UNIC, drop_teachers
    from limbeck.losses.uskd import USKD, uskd_loss
    from limbeck.losses.vitkd import ViTKD, ViTKDLoss
    from limbeck.losses.vkd import VkD, vkd_loss

__all__ = [
    "CRD",
    "CWD",
    "DIST",
    "DKD",
    "FGD",
    "KD",
    "LD",
    "METHODS",
    "MGD",
    "NKD",
    "OFAKD",
    "PKD",
    "RKD",
    "SP",
    "UNIC",
    "USKD",
    "AttentionFusion",
    "AttentionTransfer",
    "BuiltLoss",
    "ClassMap",
    "CornerKD",
    "DeiT",
    "DistillationLoss",
    "FeatureKD",
    "FitNets",
    "FocalGlobal",
    "FunctionMatching",
    "MGDLoss",
    "Manifold",
    "MaskedKD",
    "Match",
    "MethodInfo",
    "MethodSpec",
    "NoiseAdaptation",
    "Pairing",
    "PatchAttention",
    "PatchRelation",
    "QueryKD",
    "ReviewKD",
    "ReviewKDLoss",
    "RoIKD",
    "SharedQueries",
    "SpectralKD",
    "Standardised",
    "ViTKD",
    "ViTKDLoss",
    "VkD",
    "at_loss",
    "attended_patches",
    "attention_loss",
    "build_losses",
    "class_divergence",
    "corner_kd_loss",
    "cosine_smooth_l1",
    "crd_loss",
    "cwd_loss",
    "dist_loss",
    "dkd_loss",
    "drop_teachers",
    "fitnets_loss",
    "focal_loss",
    "hard_distillation_loss",
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
    "ofa_loss",
    "parse_methods",
    "patch_attention_loss",
    "patch_relation_loss",
    "phi_s_rotation",
    "pkd_loss",
    "random_tokens",
    "region_box_loss",
    "region_class_loss",
    "region_mask_loss",
    "rkd_loss",
    "shared_classes",
    "sigmoid_to_softmax",
    "soft_prediction_loss",
    "softmax_to_sigmoid",
    "sp_loss",
    "spectralkd_loss",
    "standardised_logits",
    "uskd_loss",
    "valuable_region",
    "vkd_loss",
]

_HOMES = {
    "at": ("AttentionTransfer", "at_loss"),
    "base": ("DistillationLoss", "Pairing"),
    "build": ("BuiltLoss", "build_losses"),
    "class_names": ("ClassMap", "class_divergence", "shared_classes", "sigmoid_to_softmax", "softmax_to_sigmoid"),
    "corner_kd": ("CornerKD", "corner_kd_loss"),
    "crd": ("CRD", "crd_loss"),
    "cwd": ("CWD", "cwd_loss"),
    "deit": ("DeiT", "hard_distillation_loss"),
    "dist": ("DIST", "dist_loss"),
    "dkd": ("DKD", "dkd_loss"),
    "feature_kd": ("FeatureKD", "cosine_smooth_l1"),
    "fgd": ("FGD", "FocalGlobal", "attention_loss", "focal_loss", "object_masks"),
    "fitnets": ("FitNets", "fitnets_loss"),
    "function_matching": ("FunctionMatching",),
    "kd": ("KD", "kd_loss"),
    "ld": ("LD", "ld_loss", "valuable_region"),
    "manifold": ("Manifold", "manifold_full", "manifold_inter", "manifold_intra", "manifold_random"),
    "maskedkd": ("MaskedKD", "attended_patches"),
    "matching": ("Match", "match_queries"),
    "mgd": ("MGD", "MGDLoss"),
    "nkd": ("NKD", "nkd_loss"),
    "noise_adaptation": ("NoiseAdaptation", "noise_adaptation_loss"),
    "ofa_kd": ("OFAKD", "ofa_loss"),
    "patch_attention": ("PatchAttention", "patch_attention_loss"),
    "patch_relation": ("PatchRelation", "patch_relation_loss"),
    "phi_s": ("phi_s_rotation",),
    "pkd": ("PKD", "pkd_loss"),
    "query_kd": ("QueryKD",),
    "query_loss": ("soft_prediction_loss",),
    "reviewkd": ("AttentionFusion", "ReviewKD", "ReviewKDLoss", "hcl_loss"),
    "rkd": ("RKD", "rkd_loss"),
    "shared_queries": ("SharedQueries", "random_tokens"),
    "roi_kd": ("RoIKD", "region_box_loss", "region_class_loss", "region_mask_loss"),
    "uskd": ("USKD", "uskd_loss"),
    "sp": ("SP", "sp_loss"),
    "spectralkd": ("SpectralKD", "spectralkd_loss"),
    "standardised": ("Standardised", "standardised_logits"),
    "unic": ("UNIC", "drop_teachers"),
    "vitkd": ("ViTKD", "ViTKDLoss"),
    "vkd": ("VkD", "vkd_loss"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
