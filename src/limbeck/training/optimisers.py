"""Optimisers and learning-rate schedules, from a recipe."""

import math
from collections.abc import Iterable

import torch
from timm.optim.lamb import Lamb
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from limbeck.recipe import TrainingRecipe

UNDECAYED_NAMES = (
    "pos_embed",
    "cls_token",
    "dist_token",
    "reg_token",
    "class_token",
    "position_embeddings",
    "global_weights",
)


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], recipe: TrainingRecipe
) -> torch.optim.Optimizer:
    """The recipe's optimiser; its lr, weight_decay and decay_norms must be resolved.

    Without `decay_norms`, weight decay spares vectors and scalars (biases, norms, layer scales), class and register
    tokens, position embeddings and the global weights of a patch fusion.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        is_vector = parameter.ndim <= 1 or any(part in UNDECAYED_NAMES for part in name.split("."))
        (spared if is_vector and not recipe.decay_norms else decayed).append(parameter)
    assert recipe.lr != "auto"
    assert recipe.weight_decay != "auto"
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    match recipe.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=recipe.lr)
        case "sgd":
            nesterov = recipe.nesterov and recipe.momentum > 0
            return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov)
        case "lamb":
            optimizer: torch.optim.Optimizer = Lamb(groups, lr=recipe.lr)
            return optimizer


def lr_factor(recipe: TrainingRecipe, epoch: float) -> float:
    """The learning rate at a (fractional) epoch, relative to its peak.

    Linear warm-up from 1e-3, then cosine to `min_lr_ratio` at the last epoch, steps of `step_gamma`, or constant.
    """
    assert recipe.warmup_epochs != "auto"
    assert recipe.step_epochs != "auto"
    if epoch < recipe.warmup_epochs:
        return 1e-3 + (1 - 1e-3) * epoch / recipe.warmup_epochs
    match recipe.schedule:
        case "constant":
            return 1.0
        case "step":
            return recipe.step_gamma ** sum(epoch >= boundary for boundary in recipe.step_epochs)
        case "cosine":
            span = max(1e-9, recipe.epochs - recipe.warmup_epochs)
            progress = min(1.0, (epoch - recipe.warmup_epochs) / span)
            return recipe.min_lr_ratio + (1 - recipe.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: TrainingRecipe, updates_per_epoch: int) -> LambdaLR:
    """`lr_factor` stepped once per update."""
    return LambdaLR(optimizer, lambda update: lr_factor(recipe, update / updates_per_epoch))
