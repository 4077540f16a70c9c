"""Distillation losses: pure functions of tensors, modules with parameters, and the methods a run is made of.

Names are resolved on first use, so that listing methods or refusing a misspelt one does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from limbeck.losses.names import METHODS, MethodInfo, MethodSpec, parse_methods

if TYPE_CHECKING:
    from limbeck.losses.base import DistillationLoss, Pairing
    from limbeck.losses.build import BuiltLoss, build_losses
    from limbeck.losses.cwd import CWD, cwd_loss
    from limbeck.losses.fitnets import FitNets, fitnets_loss
    from limbeck.losses.kd import KD, kd_loss
    from limbeck.losses.manifold import Manifold, manifold_full, manifold_inter, manifold_intra, manifold_random
    from limbeck.losses.mgd import MGD, MGDLoss
    from limbeck.losses.nkd import NKD, nkd_loss
    from limbeck.losses.pkd import PKD, pkd_loss
    from limbeck.losses.reviewkd import AttentionFusion, ReviewKD, ReviewKDLoss, hcl_loss
    from limbeck.losses.vitkd import ViTKD, ViTKDLoss

__all__ = [
    "CWD",
    "KD",
    "METHODS",
    "MGD",
    "NKD",
    "PKD",
    "AttentionFusion",
    "BuiltLoss",
    "DistillationLoss",
    "FitNets",
    "MGDLoss",
    "Manifold",
    "MethodInfo",
    "MethodSpec",
    "Pairing",
    "ReviewKD",
    "ReviewKDLoss",
    "ViTKD",
    "ViTKDLoss",
    "build_losses",
    "cwd_loss",
    "fitnets_loss",
    "hcl_loss",
    "kd_loss",
    "manifold_full",
    "manifold_inter",
    "manifold_intra",
    "manifold_random",
    "nkd_loss",
    "parse_methods",
    "pkd_loss",
]

_HOMES = {
    "base": ("DistillationLoss", "Pairing"),
    "build": ("BuiltLoss", "build_losses"),
    "cwd": ("CWD", "cwd_loss"),
    "fitnets": ("FitNets", "fitnets_loss"),
    "kd": ("KD", "kd_loss"),
    "manifold": ("Manifold", "manifold_full", "manifold_inter", "manifold_intra", "manifold_random"),
    "mgd": ("MGD", "MGDLoss"),
    "nkd": ("NKD", "nkd_loss"),
    "pkd": ("PKD", "pkd_loss"),
    "reviewkd": ("AttentionFusion", "ReviewKD", "ReviewKDLoss", "hcl_loss"),
    "vitkd": ("ViTKD", "ViTKDLoss"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
