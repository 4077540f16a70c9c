"""Small teachers for which images are made."""

import pytest
import torch

from limbeck.models import load_model
from limbeck.synthesis.base import Setting


@pytest.fixture
def resnet_setting() -> Setting:
    """A random network with BatchNorm, four classes, 16 pixels."""
    torch.manual_seed(0)
    teacher = load_model("limbeck:resnet8", num_classes=4, input_size=(16, 16))
    return Setting(teacher, (16, 16), batch_size=6, seed=3)


@pytest.fixture
def vit_setting() -> Setting:
    """A random vision transformer, four classes, 16 pixels, 4 x 4 patches."""
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224(patch_size=4, embed_dim=32, depth=2, num_heads=2)"
    return Setting(
        load_model(name, num_classes=4, input_size=(16, 16), pretrained=False), (16, 16), batch_size=6, seed=3
    )
