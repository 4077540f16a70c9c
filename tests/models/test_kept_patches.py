"""Plain vision transformers fed with some patches: equal to their blocks on a shorter sequence."""

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models import VisionModel, load_model
from limbeck.models.attention import reading_attention
from limbeck.models.kept_patches import can_keep_patches, keeping_patches
from limbeck.outputs import Request

SMALL = "(depth=2,embed_dim=32,num_heads=2,patch_size=8)"
PLAIN = {
    f"vit_tiny_patch16_224{SMALL}": 1,
    f"deit_tiny_distilled_patch16_224{SMALL}": 2,
    f"vit_medium_patch16_reg4_gap_256{SMALL}": 4,
    "torchvision:vit_b_16": 1,
    "hf": 1,
}
"""Networks, and how many tokens stand before their patches."""


def opened(name: str) -> VisionModel:
    size = 64 if "torchvision" in name else 32
    if name == "hf":
        pytest.importorskip("transformers")
        from limbeck.models.transformers_models import from_config

        config = {
            "model_type": "vit",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 8,
            "num_labels": 7,
        }
        prepared: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
        model: VisionModel = from_config(config, text="hf:vit", preparation=prepared | {"input_size": (32, 32)})
    else:
        model = load_model(name, pretrained=False, num_classes=7, input_size=(size, size))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def images(model: VisionModel, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *model.facts.input_size, generator=torch.Generator().manual_seed(2))


def chosen(batch: int, patches: int, kept: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.stack([torch.randperm(patches, generator=generator)[:kept] for _ in range(batch)])


@pytest.mark.parametrize("name", PLAIN)
def test_all_patches_in_any_order_give_the_same_answer(name: str) -> None:
    model = opened(name)
    assert can_keep_patches(model) is None
    request = Request(pooled=True)
    expected = model.read(images(model), request)
    patches = model.facts.levels[0].grid[0] * model.facts.levels[0].grid[1]
    for kept in (None, torch.arange(patches).expand(2, -1)):
        with keeping_patches(model, kept):
            found = model.read(images(model), request)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.pooled, expected.pooled)
    with keeping_patches(model, chosen(2, patches, patches)):
        found = model.read(images(model), request)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    with keeping_patches(model, chosen(2, patches, patches // 2)):
        assert (model.read(images(model), request).logits - expected.logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", PLAIN)
def test_the_pictures_gradient_stays_on_the_kept_patches(name: str) -> None:
    model = opened(name)
    rows, columns = model.facts.levels[0].grid
    side = model.facts.input_size[0] // rows
    kept = chosen(2, rows * columns, 5)
    picture = images(model).requires_grad_()
    with keeping_patches(model, kept):
        (gradient,) = torch.autograd.grad(model.read(picture, Request()).logits.square().sum(), picture)
    cells = gradient.abs().unfold(2, side, side).unfold(3, side, side).sum((1, 4, 5)).flatten(1)
    fed = torch.zeros(2, rows * columns, dtype=torch.bool).scatter_(1, kept, True)
    assert (cells[fed] > 0).all()
    assert (cells[~fed] == 0).all()


@torch.no_grad()
def test_a_subset_is_the_blocks_on_a_shorter_sequence() -> None:
    model = opened(f"deit_tiny_distilled_patch16_224{SMALL}")
    network: Any = model.network
    kept = chosen(2, 16, 6)
    tokens = network._pos_embed(network.patch_embed(images(model)))
    shorter = torch.stack([torch.cat([row[:2], row[2 + own]]) for row, own in zip(tokens, kept, strict=True)])
    expected = network.forward_head(network.norm(network.blocks(shorter)))
    with keeping_patches(model, kept), reading_attention(model) as attentions:
        torch.testing.assert_close(model.read(images(model), Request()).logits, expected)
    assert [(a.prefix, a.grid, a.query.shape[2]) for a in attentions] == [(2, None, 8)] * 2
    # Two pictures of a batch do not see each other.
    with keeping_patches(model, kept[1:]):
        torch.testing.assert_close(model.read(images(model)[1:], Request()).logits, expected[1:])


@torch.no_grad()
def test_maps_are_refused_and_nothing_stays_behind() -> None:
    model = opened(f"vit_tiny_patch16_224{SMALL}")
    expected = model(images(model)).logits
    with keeping_patches(model, chosen(2, 16, 4)):
        for request in (Request(("blocks.0",)), Request(final=True)):
            with pytest.raises(UserError, match="Maps cannot be read while only some patches are fed"):
                model.read(images(model), request)
        with keeping_patches(model, None):
            some = model(images(model)).logits
    assert not torch.equal(some, expected)
    with pytest.raises(KeyboardInterrupt), keeping_patches(model, chosen(2, 16, 4)):
        raise KeyboardInterrupt
    assert "read" not in vars(model)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
    assert torch.equal(model(images(model)).logits, expected)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("resnet18", 64, "no plain transformer"),
        ("swin_tiny_patch4_window7_224", 64, "no plain transformer"),
        ("limbeck:ipe_vit_75m_32", 32, "no plain transformer"),
        ("beit_base_patch16_224(depth=2,embed_dim=32,num_heads=2)", 32, "relative positions"),
        ("vit_relpos_small_patch16_224(depth=2,embed_dim=32,num_heads=2)", 32, "relative positions"),
        ("eva02_tiny_patch14_224(depth=2,embed_dim=32,num_heads=2)", 28, "rotary positions"),
        ("vit_small_patch16_dinov3(depth=2,embed_dim=32,num_heads=2)", 32, "rotary positions"),
        ("cait_xxs24_224(depth=2,embed_dim=32,num_heads=2)", 32, "do not stand in one list"),
        ("convit_tiny(depth=2,embed_dim=32,num_heads=2)", 32, ""),
        ("limbeck:ipe_vit_75m_32(stem=patchify,stem_stride=4)", 32, "fails on fewer patches"),
    ],
)
def test_other_networks_are_refused_with_the_reason(name: str, size: int, reason: str) -> None:
    model = load_model(name, pretrained=False, num_classes=7, input_size=(size, size)).train()
    found = can_keep_patches(model)
    assert found is not None and reason in found
    assert model.training and all(part.training for part in model.modules())
    if not reason.startswith("fails"):
        kept = torch.zeros(1, 1, dtype=torch.int64)
        with pytest.raises(UserError, match="cannot be fed some patches only, since"), keeping_patches(model, kept):
            pass
