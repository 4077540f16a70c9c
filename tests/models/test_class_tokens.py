"""Class tokens are the first tokens of the libraries' own sequences, at the levels that are asked for."""

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.models import VisionModel, load_model
from limbeck.outputs import Request

SMALL = "(depth=3,embed_dim=32,num_heads=2)"


def opened(name: str, size: int = 32) -> VisionModel:
    model = load_model(name, pretrained=False, num_classes=7, input_size=(size, size))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def sequences(model: VisionModel, blocks: Any, inputs: Tensor) -> list[Tensor]:
    """What each block of the bare network returns."""
    found: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _, __, output: found.append(output)) for block in blocks]
    model.network(inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    "name",
    [
        f"vit_tiny_patch16_224{SMALL}",
        f"deit_tiny_distilled_patch16_224{SMALL}",
        f"beit_base_patch16_224{SMALL}",
        f"vit_small_patch16_dinov3{SMALL}",
        "torchvision:vit_b_16",
    ],
)
@torch.no_grad()
def test_they_are_the_first_tokens_of_the_blocks(name: str) -> None:
    model = opened(name)
    inputs = model.prepare(torch.rand(2, 3, 32, 32))
    network: Any = model.network
    tokens = sequences(model, network.encoder.layers if "torchvision" in name else network.blocks, inputs)
    outputs = model.read(inputs, Request(("blocks.2", "blocks.0"), class_tokens=True))
    assert list(outputs.class_tokens) == list(outputs.maps) == ["blocks.2", "blocks.0"]
    for level in (0, 2):
        assert torch.equal(outputs.class_tokens[f"blocks.{level}"], tokens[level][:, 0])
    without = model.read(inputs, Request(("blocks.2", "blocks.0")))
    assert without.class_tokens == {}
    torch.testing.assert_close(without.maps, outputs.maps)
    assert model.read(inputs, Request(class_tokens=True)).class_tokens == {}


@torch.no_grad()
def test_of_transformers_too() -> None:
    transformers = pytest.importorskip("transformers")
    from limbeck.models.transformers_models import TransformersModel

    common: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "input_size": (32, 32)}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    vit = transformers.Dinov2WithRegistersForImageClassification(transformers.Dinov2WithRegistersConfig(**small))
    model = TransformersModel(vit, text="hf:dinov2", notes=[], **common).eval()
    inputs = model.prepare(torch.rand(2, 3, 32, 32))
    states = vit(pixel_values=inputs, output_hidden_states=True).hidden_states
    found = model.read(inputs, Request(("blocks.0", "blocks.1"), class_tokens=True)).class_tokens
    assert all(torch.equal(found[f"blocks.{level}"], states[level + 1][:, 0]) for level in (0, 1))
    ijepa = transformers.IJepaForImageClassification(transformers.IJepaConfig(**small))
    model = TransformersModel(ijepa, text="hf:ijepa", notes=[], **common).eval()
    assert model.read(inputs, Request(("blocks.0",), class_tokens=True)).class_tokens == {}


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "swin_tiny_patch4_window7_224",
        f"vit_medium_patch16_reg4_gap_256{SMALL}",
        f"cait_xxs24_224{SMALL}",
        "torchvision:resnet18",
        "limbeck:resnet8",
        "limbeck:ipe_vit_75m_32",
    ],
)
@torch.no_grad()
def test_networks_without_one_give_none(name: str) -> None:
    model = opened(name)
    level = model.facts.levels[-1].name
    outputs = model(torch.rand(2, 3, 32, 32), Request((level,), class_tokens=True))
    assert outputs.class_tokens == {}
    assert list(outputs.maps) == [level]


def test_a_union_of_requests_asks_for_them_if_any_does() -> None:
    asks, does_not = Request(("a",), class_tokens=True), Request(("b",))
    assert Request.union([does_not, asks]).class_tokens
    assert not Request.union([does_not]).class_tokens
