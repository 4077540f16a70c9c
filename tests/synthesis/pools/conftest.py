"""A teacher whose answers can be worked out by hand, and folders of images of one colour each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from limbeck.models import load_model
from limbeck.models.base import VisionModel
from limbeck.outputs import ModelFacts, Outputs, Request
from limbeck.synthesis.base import Setting


class ColourTeacher(VisionModel):
    """Three classes: logits are ten times the mean red, green and blue; fewer classes leave the last colours out."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
        self.facts = ModelFacts("colours", num_classes, (8, 8), (), 3)

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        return Outputs(10 * inputs.mean((2, 3))[:, : self.facts.num_classes])


@pytest.fixture
def setting() -> Setting:
    return Setting(ColourTeacher(), (8, 8), batch_size=4, seed=3, class_names=("red", "green", "blue"))


@pytest.fixture
def one_class_setting() -> Setting:
    return Setting(ColourTeacher(num_classes=1), (8, 8), batch_size=4)


@pytest.fixture
def attentive_setting() -> Setting:
    """A random vision transformer with four classes, 4 x 4 patches and two blocks."""
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224(patch_size=4, embed_dim=32, depth=2, num_heads=2)"
    teacher = load_model(name, num_classes=4, pretrained=False, input_size=(16, 16))
    for name, weight in teacher.named_parameters():
        if "qkv" in name:  # random attention would be even everywhere
            weight.data.mul_(20)
    return Setting(teacher, (16, 16), batch_size=3)


@pytest.fixture
def fill() -> Callable[[Path, list[tuple[int, int, int]]], Path]:
    def make(folder: Path, colours: list[tuple[int, int, int]]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, colour in enumerate(colours):
            Image.new("RGB", (14, 10), colour).save(folder / f"{number:03}.png")
        return folder

    return make
