"""Attention as it is read, against what the libraries compute when nothing is fused."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from limbeck.models import load_model
from limbeck.models.attention import Attention, attention_blocks, reading_attention
from limbeck.models.dot_products import DotProduct, WatchingDotProducts
from limbeck.outputs import Request

SMALL_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_SWIN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
}
SMALL_EVA: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def filled(network: nn.Module) -> nn.Module:
    """In evaluation mode, with no parameter so special (a zero bias, a tiny layer scale) that it would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(False)


def images(size: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(2))


def timm_network(name: str, **options: Any) -> nn.Module:
    return filled(timm.create_model(name, pretrained=False, num_classes=7, **options))


def read(network: nn.Module, inputs: Tensor) -> list[Attention]:
    with reading_attention(network) as attentions:
        network(inputs)
    return attentions


def unfused(network: nn.Module, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """timm's attention matrices and their products with the values, (B, heads, N, N) and (B, N, heads·d)."""
    weights: list[Tensor] = []
    mixed: list[Tensor] = []
    was = [(block, getattr(block, "fused_attn", False)) for block in attention_blocks(network)]
    with ExitStack() as stack:
        for block, _ in was:
            block.fused_attn = False
            keep = block.attn_drop.register_forward_pre_hook(lambda _, given: weights.append(given[0]))
            stack.callback(keep.remove)
            stack.callback(block.proj.register_forward_pre_hook(lambda _, given: mixed.append(given[0])).remove)
        network(inputs)
    for block, fused in was:
        block.fused_attn = fused
    return weights, mixed


def heads_joined(attention: Attention) -> Tensor:
    return attention.mixed().transpose(1, 2).flatten(2)


TIMM: dict[str, tuple[dict[str, Any], int, tuple[int, int]]] = {
    "vit_tiny_patch16_224": (SMALL_VIT, 1, (4, 4)),
    "deit_tiny_distilled_patch16_224": (SMALL_VIT, 2, (4, 4)),
    "vit_medium_patch16_reg4_gap_256": (SMALL_VIT, 4, (4, 4)),
    "swin_tiny_patch4_window7_224": (SMALL_SWIN, 0, (4, 4)),
    "swinv2_tiny_window8_256": (SMALL_SWIN, 0, (4, 4)),
    "beit_base_patch16_224": (SMALL_VIT, 1, (4, 4)),
    "vit_relpos_small_patch16_224": (SMALL_VIT, 0, (4, 4)),
    "eva02_tiny_patch14_224": (SMALL_EVA, 1, (4, 4)),
    "vit_small_patch16_dinov3": (SMALL_EVA, 5, (4, 4)),
}


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_of_timms_networks_the_matrix_is_the_one_of_their_unfused_form(name: str) -> None:
    options, prefix, grid = TIMM[name]
    network = timm_network(name, **options)
    expected = network(images())
    attentions = read(network, images())
    assert torch.equal(network(images()), expected)
    with reading_attention(network):
        assert torch.equal(network(images()), expected)
    weights, mixed = unfused(network, images())
    assert len(attentions) == len(weights) == len(attention_blocks(network)) == (4 if "swin" in name else 2)
    for attention, matrix, product in zip(attentions, weights, mixed, strict=True):
        torch.testing.assert_close(attention.scores().softmax(-1), matrix)
        if product.ndim == 3 and product.shape[-1] == attention.query.shape[1] * attention.value.shape[-1]:
            torch.testing.assert_close(heads_joined(attention), product)
        assert (attention.prefix, attention.grid) == (prefix, grid)
        assert attention.has_class == (prefix > 0 and "gap" not in name)


@torch.no_grad()
def test_swins_shifted_windows_do_not_see_what_was_rolled_in() -> None:
    attentions = read(timm_network("swin_tiny_patch4_window7_224", **SMALL_SWIN), images())
    plain, shifted = attentions[0], attentions[1]
    assert plain.query.shape == shifted.query.shape == (2 * 4, 2, 16, 8)  # 2 images of 2x2 windows count as 8 images
    assert plain.bias is not None and plain.bias.shape == (1, 2, 16, 16)
    assert shifted.bias is not None and shifted.bias.shape == (8, 2, 16, 16)
    weights = shifted.scores().softmax(-1)
    assert float(weights[0].min()) > 1e-6  # the first window holds one region, the last four
    assert float((weights[3] < 1e-6).float().mean()) == pytest.approx(0.75)


@torch.no_grad()
def test_of_transformers_the_matrix_is_the_eager_one() -> None:
    transformers = pytest.importorskip("transformers")
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
        "num_labels": 7,
    }
    made = {
        1: transformers.ViTForImageClassification(transformers.ViTConfig(**small)),
        2: transformers.DeiTForImageClassification(transformers.DeiTConfig(**small)),
        0: transformers.SwinForImageClassification(
            transformers.SwinConfig(
                image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
            )
        ),
    }
    for prefix, network in made.items():
        filled(network)
        network.set_attn_implementation("eager")
        expected = network(pixel_values=images(), output_attentions=True).attentions
        for implementation in ("eager", "sdpa"):
            network.set_attn_implementation(implementation)
            logits = network(pixel_values=images()).logits
            with reading_attention(network) as attentions:
                assert torch.equal(network(pixel_values=images()).logits, logits)
            assert {(attention.prefix, attention.grid) for attention in attentions} == {(prefix, (4, 4))}
            # Of Swin the library returns the last block of each stage.
            for attention, matrix in zip(attentions if prefix else attentions[1::2], expected, strict=True):
                torch.testing.assert_close(attention.scores().softmax(-1), matrix, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_yolos_detection_tokens_are_moved_before_the_patches() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=[32, 48],
        patch_size=8,
        num_detection_tokens=3,
        attn_implementation="eager",
    )
    network = filled(transformers.YolosForObjectDetection(config))
    pictures = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    with reading_attention(network) as attentions:
        weights = network(pixel_values=pictures, output_attentions=True).attentions
    order = [0, 25, 26, 27, *range(1, 25)]
    for attention, matrix in zip(attentions, weights, strict=True):
        assert (attention.prefix, attention.grid, attention.has_class) == (4, (4, 6), True)
        torch.testing.assert_close(attention.scores().softmax(-1), matrix[:, :, order][..., order])


@torch.no_grad()
def test_of_torchs_own_attention_the_matrix_is_the_one_that_it_returns() -> None:
    network = filled(
        torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=7)
    )
    expected = network(images())
    entered: list[Tensor] = []
    blocks = attention_blocks(network)
    handles = [block.register_forward_pre_hook(lambda _, given: entered.append(given[0])) for block in blocks]
    attentions = read(network, images())
    for handle in handles:
        handle.remove()
    with reading_attention(network):
        assert torch.equal(network(images()), expected)
    for block, tokens, attention in zip(blocks, entered, attentions, strict=True):
        mixed, weights = block(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)
        torch.testing.assert_close(attention.scores().softmax(-1), weights)
        torch.testing.assert_close(block.out_proj(heads_joined(attention)), mixed)
        assert (attention.prefix, attention.grid, attention.has_class) == (1, (4, 4), True)


@torch.no_grad()
def test_torchs_attention_with_masks_and_other_sequences() -> None:
    block = filled(nn.MultiheadAttention(8, 2))
    tokens, padding = torch.randn(5, 3, 8), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    mask = torch.ones(5, 5).tril().bool().logical_not()
    with reading_attention(block) as attentions:
        _, weights = block(tokens, tokens, tokens, key_padding_mask=padding, attn_mask=mask, average_attn_weights=False)
        assert len(attentions) == 1
        torch.testing.assert_close(attentions[0].scores().softmax(-1), weights)
        block(tokens[:2], tokens, tokens)
        assert attentions == []


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "swin_v2_t"])
@torch.no_grad()
def test_our_adapters_can_be_read(name: str) -> None:
    model = load_model(f"torchvision:{name}", pretrained=False, num_classes=7, input_size=(64, 64)).eval()
    inputs = images(64)
    with reading_attention(model) as attentions:
        found = model.read(inputs, Request()).logits
    assert torch.equal(found, model.network(inputs))
    assert len(attentions) == len(attention_blocks(model)) == 12
    grid = {"vit_b_16": (4, 4), "swin_t": (7, 7), "swin_v2_t": (8, 8)}[name]
    assert {attention.grid for attention in attentions} == {grid}


@torch.no_grad()
def test_our_mobile_network_is_read_at_its_finest_patches() -> None:
    model = load_model("limbeck:ipe_vit_75m_32", pretrained=False, num_classes=7).eval()
    with reading_attention(model) as attentions:
        model(torch.rand(2, 3, 32, 32))
    (rows, columns), coarser = model.network.grids[-1], sum(h * w for h, w in model.network.grids[:-1])
    assert len(attentions) == len(model.network.blocks)
    for attention in attentions:
        assert (attention.prefix, attention.grid, attention.has_class) == (coarser, (rows, columns), False)
        assert attention.class_attention().shape == (2, attention.query.shape[1], rows * columns)


@torch.no_grad()
def test_grids_follow_the_picture() -> None:
    network = timm_network("vit_tiny_patch16_224", **SMALL_VIT, dynamic_img_size=True)
    with reading_attention(network) as attentions:
        for height, width in ((32, 32), (16, 48), (32, 32)):
            network(torch.zeros(1, 3, height, width))
            assert [attention.grid for attention in attentions] == [(height // 8, width // 8)] * 2
            assert attentions[0].query.shape[2] == 1 + height * width // 64


@torch.no_grad()
def test_class_attention_is_the_renormalised_first_row() -> None:
    network = timm_network("vit_tiny_patch16_224", **SMALL_VIT)
    attention = read(network, images())[1]
    row = attention.scores().softmax(-1)[:, :, 0, 1:]
    torch.testing.assert_close(attention.class_attention(), row / row.sum(-1, keepdim=True))
    without = read(timm_network("vit_medium_patch16_reg4_gap_256", **SMALL_VIT), images())[0]
    rows = without.scores()[..., 4:, 4:].softmax(-1)
    torch.testing.assert_close(without.class_attention(), rows.mean(2))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_the_gradient_flows_to_the_picture_as_through_the_network(name: str) -> None:
    """The attention's product, put through the rest of its block, has the gradient of that block's output."""
    network = timm_network(name, **TIMM[name][0])
    picture = images().requires_grad_()
    _, mixed = unfused(network, picture)
    (expected,) = torch.autograd.grad(mixed[1].square().sum(), picture)
    attention = read(network, picture)[1]
    (found,) = torch.autograd.grad(attention.mixed().square().sum(), picture)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    # The matrix alone depends on the picture, by queries and by keys.
    (alone,) = torch.autograd.grad(read(network, picture)[1].scores().softmax(-1)[..., 0].sum(), picture)
    assert alone.abs().sum() > 0


@torch.no_grad()
def test_every_pass_fills_the_list_anew_and_nothing_stays_behind() -> None:
    model = load_model("vit_tiny_patch16_224(depth=2,embed_dim=32,num_heads=2)", pretrained=False, input_size=(32, 32))
    model.eval()
    before = [(dict(part._forward_hooks), dict(part._forward_pre_hooks)) for part in model.modules()]

    def is_as_before() -> bool:
        hooks = [(dict(part._forward_hooks), dict(part._forward_pre_hooks)) for part in model.modules()]
        return hooks == before and not any("forward" in vars(part) for part in model.modules())

    first, second = torch.rand(2, 3, 32, 32), torch.rand(3, 3, 32, 32)
    with reading_attention(model) as attentions:
        model(first)
        kept = list(attentions)
        model.read(second, Request())  # not through model.__call__
        assert len(attentions) == 2 and all(attention.query.shape[0] == 3 for attention in attentions)
        assert all(attention.query.shape[0] == 2 for attention in kept)
        model(first)
        assert len(attentions) == 2
        with reading_attention(model) as nested:
            model(second)
        assert len(nested) == len(attentions) == 2
    assert is_as_before()
    model(first)
    assert len(attentions) == 2 and attentions[0].query.shape[0] == 3

    for error in (RuntimeError, KeyboardInterrupt):

        def fails(*_: object, error: type[BaseException] = error) -> None:
            raise error

        handle = model.network.blocks[1].attn.proj.register_forward_pre_hook(fails)
        with pytest.raises(error), reading_attention(model):
            model(first)
        handle.remove()
        assert is_as_before()
        seen: list[DotProduct] = []
        with WatchingDotProducts(seen.append):  # no watcher is left over to take it first, or twice
            model(first)
        assert len(seen) == 2


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 0), ("xcit_nano_12_p16_224", 0), ("cait_xxs24_224", 0), ("levit_128s", 9)]
)
@torch.no_grad()
def test_only_attention_among_patches_counts(name: str, count: int) -> None:
    network = timm.create_model(name, pretrained=False).eval()
    assert len(attention_blocks(network)) == count
    assert len(read(network, images(224, 1))) == count


def test_decoders_and_cross_attention_are_left_out() -> None:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=4,
    )
    network = filled(transformers.DetrForObjectDetection(config))
    with reading_attention(network) as attentions, torch.no_grad():
        network(pixel_values=torch.zeros(1, 3, 64, 96))
    assert attention_blocks(network) == [layer.self_attn for layer in network.model.encoder.layers]
    assert [(a.query.shape[2], a.prefix, a.grid) for a in attentions] == [(6, 0, (2, 3))] * 2


Chain = Callable[[Tensor, Tensor, Tensor], Tensor]
CHAINS: dict[str, Chain] = {
    "plain": lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(-1) @ v,
    "scaled after": lambda q, k, v: torch.softmax(torch.matmul(q, k.mT) / 3 * 2, dim=-1).matmul(v),
    "bias": lambda q, k, v: ((q @ k.mT) * 0.5 + torch.ones(5, 5).tril()).softmax(-1) @ v,
    "in place": lambda q, k, v: (q @ k.mT).add_(torch.ones(5, 5).tril()).mul_(1.0).softmax(-1) @ v,
    "bias that learns": lambda q, k, v: (
        ((q @ k.mT) + q.mean(-1, keepdim=True) * k.mean(-1)[:, :, None]).softmax(-1) @ v
    ),
    "scaled by head": lambda q, k, v: (q @ k.mT * torch.tensor([1.0, 3.0]).view(2, 1, 1)).softmax(-1) @ v,
    "scaled after the bias": lambda q, k, v: ((q @ k.mT + torch.ones(5, 5).tril()) * 0.3).softmax(-1) @ v,
    "masked": lambda q, k, v: (q @ k.mT).masked_fill(torch.eye(5).bool(), float("-inf")).softmax(-1) @ v,
    "as windows": lambda q, k, v: (
        ((q @ k.mT).view(1, 3, 2, 5, 5) + torch.arange(3.0).view(3, 1, 1, 1) * torch.eye(5))
        .view(3, 2, 5, 5)
        .softmax(-1)
        @ v
    ),
    "dropout": lambda q, k, v: nn.functional.dropout((q @ k.mT).float().softmax(-1), 0.5, training=False).to(q) @ v,
    "fused": lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, scale=0.7),
    "fused, masked": lambda q, k, v: nn.functional.scaled_dot_product_attention(
        q, k, v, torch.ones(5, 5).tril().bool()
    ),
    "fused, shared keys": lambda q, k, v: nn.functional.scaled_dot_product_attention(
        q, k[:, :1], v[:, :1], enable_gqa=True
    ),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_a_chain_is_seen_with_value_and_gradient(chain: Chain) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(3, 2, 5, 4, generator=generator).requires_grad_() for _ in range(3)]
    seen: list[DotProduct] = []
    with WatchingDotProducts(seen.append):
        expected = chain(*inputs)
    (product,) = seen
    attention = Attention(product.query, product.key, product.value, product.scale, bias=product.bias)
    torch.testing.assert_close(attention.mixed(), expected)
    gradients = [
        torch.autograd.grad(of.square().sum(), inputs, retain_graph=True) for of in (attention.mixed(), expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_what_is_no_attention_is_not_seen() -> None:
    seen: list[DotProduct] = []
    q = torch.randn(3, 2, 5, 4)
    with WatchingDotProducts(seen.append):
        _ = (q @ q.mT) @ q  # no softmax
        weights = (q @ q.mT).relu().softmax(-1)  # of something else than the scores
        _ = weights @ q
        _ = (q @ q.mT).softmax(-2) @ q  # over the queries
    assert seen == []
