"""Tiny teachers with random weights, and students for them."""

import functools

import torch

from limbeck.models.base import VisionModel
from limbeck.models.door import load_model
from limbeck.synthesis.base import Setting

VIT = "vit_tiny_patch16_224(patch_size=8, embed_dim=32, depth=2, num_heads=2)"
CNN = "limbeck:resnet8"
CONVNEXT = "convnext_atto(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), patch_size=2)"


@functools.cache
def teacher(name: str, num_classes: int = 5, size: int = 32) -> VisionModel:
    """One of the above; weights are larger than an initialisation's, so that pictures matter."""
    torch.manual_seed(0)
    model = load_model(name, num_classes=num_classes, pretrained=False, input_size=(size, size))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1 if name == CNN else 3)
    return model.eval().requires_grad_(False)


def setting(name: str = VIT, batch: int = 4, size: tuple[int, int] = (32, 32), **options: object) -> Setting:
    return Setting(teacher(name), size, batch_size=batch, **options)  # type: ignore[arg-type]
