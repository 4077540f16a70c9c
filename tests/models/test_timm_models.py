import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.timm_models import TimmModel, create
from limbeck.outputs import Request

VITS = {
    "deit_tiny_patch16_224": 1,
    "deit_tiny_distilled_patch16_224": 2,
    "cait_xxs24_224": 0,
    "eva02_tiny_patch14_224": 1,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_small_patch16_dinov3": 5,
}
PYRAMIDS = (
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
    "resnet18",
    "mobilenetv3_small_050",
    "efficientformerv2_s0",
    "tiny_vit_5m_224",
    "fastvit_t8",
    "levit_128s",
    "regnety_002",
)
EXTRA = ("eva02_tiny_patch14_224", "levit_128s", "regnety_002")
"""Families whose graph is like another's: compiling them again would only take time."""
TWO_HEADS = ("deit_tiny_distilled_patch16_224", "efficientformerv2_s0", "levit_128s")


def opened(name: str, **options: Any) -> TimmModel:
    """A model of seven classes at 64 pixels whose every parameter matters (no zero biases, no tiny layer scales)."""
    size = (70, 70) if "patch14" in name else (64, 64)
    model = create(name, text=name, num_classes=7, pretrained=False, input_size=size, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def everything(model: TimmModel) -> Request:
    return Request(tuple(level.name for level in model.facts.levels), pooled=True, final=True, class_tokens=True)


def images(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", [*VITS, *PYRAMIDS])
@torch.no_grad()
def test_logits_are_the_librarys_and_maps_have_the_promised_sizes(name: str) -> None:
    model = opened(name)
    inputs = model.prepare(images())
    outputs = model(images(), everything(model))
    expected = model.network(inputs)
    assert expected.std() > 1e-3
    torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(images()).logits, expected, atol=1e-5, rtol=1e-5)
    assert list(outputs.maps) == [level.name for level in model.facts.levels]
    for level in model.facts.levels:
        assert outputs.maps[level.name].shape == (2, level.channels, *level.grid)
        assert level.stride == round(model.facts.input_size[0] / level.grid[0])
    final = model.facts.final
    assert final is not None
    assert outputs.final is not None
    assert outputs.final.shape == (2, final.channels, *final.grid)
    assert outputs.pooled is not None
    assert outputs.pooled.shape == (2, model.facts.pooled_channels)
    assert outputs.logits.shape == (2, model.facts.num_classes)


@pytest.mark.parametrize("name", [name for name in [*VITS, *PYRAMIDS] if name not in TWO_HEADS])
@torch.no_grad()
def test_pooled_is_what_enters_the_classifier(name: str) -> None:
    model = opened(name)
    entered: list[Tensor] = []
    handle = model.network.get_classifier().register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    model.network(model.prepare(images()))
    handle.remove()
    outputs = model(images(), Request(pooled=True))
    torch.testing.assert_close(outputs.pooled, entered[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.network.get_classifier()(outputs.pooled), outputs.logits)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "efficientformerv2_s0"])
def test_two_heads_are_averaged_in_training_too(name: str) -> None:
    model = opened(name).train()
    logits = model(images(), Request(pooled=True)).logits
    assert logits.shape == (2, 7)
    heads = model.network.get_classifier()
    logits.sum().backward()
    for head in heads:
        weight = next(p for p in head.parameters() if p.ndim == 2)
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_a_cell_of_a_map_is_the_patchs_token(name: str) -> None:
    model, prefix = opened(name), VITS[name]
    assert {level.kind for level in model.facts.levels} == {"block"}
    tokens: dict[int, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _, __, output, number=number: tokens.__setitem__(number, output))
        for number, block in enumerate(model.network.blocks)
    ]
    outputs = model(images(), everything(model))
    for handle in handles:
        handle.remove()
    assert len(tokens) == len(model.facts.levels)
    height, width = model.facts.levels[0].grid
    for number, sequence in tokens.items():
        assert sequence.shape[1] == prefix + height * width
        map_ = outputs.maps[f"blocks.{number}"]
        for row in range(height):
            for column in range(width):
                assert torch.equal(map_[:, :, row, column], sequence[:, prefix + row * width + column])
    if name != "eva02_tiny_patch14_224":  # EVA norms after pooling, so its final map is its last
        normed = model.network.norm(outputs.maps[f"blocks.{len(tokens) - 1}"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert (normed - outputs.maps[f"blocks.{len(tokens) - 1}"]).abs().max() > 1e-2
        torch.testing.assert_close(outputs.final, normed, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_swins_final_map_is_the_norm_of_its_last_stage() -> None:
    model = opened("swin_tiny_patch4_window7_224")
    outputs = model(images(), Request(("stages.3",), final=True))
    normed = model.network.norm(outputs.maps["stages.3"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(outputs.final, normed)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramids_have_one_stage_per_stride_without_the_stem(name: str) -> None:
    levels = opened(name).facts.levels
    assert [level.stride for level in levels] == ([16, 32, 64] if name == "levit_128s" else [4, 8, 16, 32])
    assert {level.kind for level in levels} == {"stage"}


@torch.no_grad()
def test_resnets_stages_are_its_layers() -> None:
    model = opened("resnet18")
    seen: dict[str, Tensor] = {}
    for number in range(4):
        layer = getattr(model.network, f"layer{number + 1}")
        layer.register_forward_hook(lambda _, __, output, number=number: seen.__setitem__(f"stages.{number}", output))
    outputs = model(images(), Request(("stages.3", "stages.0", "stages.1")))
    assert list(outputs.maps) == ["stages.3", "stages.0", "stages.1"]
    assert all(torch.equal(map_, seen[name]) for name, map_ in outputs.maps.items())


@torch.no_grad()
def test_the_model_resizes_and_normalises_for_itself() -> None:
    model = opened("convnext_atto")
    model.mean.copy_(torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
    model.std.copy_(torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1))
    by_hand = torch.stack([(images()[:, c] - (c + 1) / 10) / (0.5 + c / 10) for c in range(3)], 1)
    torch.testing.assert_close(model(images()).logits, model.network(by_hand), atol=1e-5, rtol=1e-5)
    large = images(96)
    small = nn.functional.interpolate(large, (64, 64), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    torch.testing.assert_close(model(large).logits, model(small).logits)


def test_mean_and_std_are_the_weights_own() -> None:
    eva = opened("eva02_tiny_patch14_224")
    cfg = timm.get_pretrained_cfg("eva02_tiny_patch14_224")
    torch.testing.assert_close(eva.mean.flatten(), torch.tensor(cfg.mean))
    torch.testing.assert_close(eva.std.flatten(), torch.tensor(cfg.std))
    assert tuple(cfg.mean) != (0.485, 0.456, 0.406)


def test_drop_path_reaches_the_blocks_or_is_noted() -> None:
    rates = [m.drop_prob for m in opened("deit_tiny_patch16_224", drop_path=0.1).modules() if hasattr(m, "drop_prob")]
    assert max(rates) == pytest.approx(0.1)
    assert any("drop_path has no effect" in note for note in opened("densenet121", drop_path=0.1).provenance.notes)


def test_hrnet_has_no_stochastic_depth_and_no_fixed_size() -> None:
    """Its class words its refusal of an argument in another way than Python does."""
    model = create("hrnet_w18_small", text="h", num_classes=7, pretrained=False, input_size=(64, 64), drop_path=0.1)
    assert any("drop_path has no effect" in note for note in model.provenance.notes)


@pytest.mark.parametrize(
    ("name", "options", "levels", "width"),
    [
        ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 64, "num_heads": 2}, 3, 64),
        ("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}, 4, 32),
        ("resnet18", {"layers": [1, 1, 1, 1]}, 4, 512),
    ],
)
def test_options_are_the_networks_arguments(name: str, options: dict[str, Any], levels: int, width: int) -> None:
    model = opened(name, options=options)
    size = {"img_size": 64} if "vit" in name else {}
    theirs = timm.create_model(name, num_classes=7, **size, **options)
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in model.network.state_dict().items()} == shapes
    assert (len(model.facts.levels), model.facts.pooled_channels) == (levels, width)
    assert model.rebuild["options"] == options
    assert "options" not in opened(name).rebuild


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "vit_tiny_patch16_224",
            {"depht": 3},
            "has no option 'depht', .*Did you mean 'depth'.*Its options: .*embed_dim",
        ),
        ("deit_tiny_distilled_patch16_224", {"nonsense": 3}, "has no option 'nonsense'.*depth"),
        ("hrnet_w18_small", {"nonsense": 3}, "has no option 'nonsense'"),
        ("vit_tiny_patch16_224", {"depth": "six"}, "with depth='six' it fails .TypeError"),
        (
            "vit_tiny_patch16_224",
            {"num_heads": 5},
            "with num_heads=5 it fails .AssertionError: dim should be divisible",
        ),
        ("vit_tiny_patch16_224", {"act_layer": "no", "depth": 1}, "with act_layer='no', depth=1 it fails"),
        ("vit_tiny_patch16_224", {"embed_dim": -3}, "with embed_dim=-3 it fails .RuntimeError"),
        ("vit_tiny_patch16_224", {"depth": 0}, "Or it is one of its options: depth"),
        ("vit_tiny_patch16_224", {"global_pool": ""}, r"returns \(17, 7\) numbers for an image"),
        ("vit_tiny_patch16_224", {"depth": None}, "timm's own default. Leave the option out"),
        ("convnext_atto", {"depths": [1, 1]}, r"with depths=\[1, 1\] it fails .IndexError"),
        ("poolformer_s12", {"depths": [1, 1, 1, 1]}, "poolformer_s12 fixes depths itself"),
        ("resnet18", {"num_classes": 3}, "images' labels"),
        ("resnet18", {"pretrained": True}, "Use --pretrained"),
        ("resnet18", {"img_size": 64}, "Use --input_size"),
        ("resnet18", {"drop_path_rate": 0.1}, "Use --drop_path"),
        ("resnet18", {"features_only": True}, "reads their feature maps by itself"),
        ("resnet18", {"checkpoint_path": "w.pth"}, "NAME@weights.safetensors"),
        ("resnet18", {"pretrained_cfg": {"file": "w.pth"}}, "NAME@weights.safetensors"),
        ("resnet18", {"in_chans": 1}, "three channels"),
    ],
)
def test_options_that_cannot_be_are_explained(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(name, options=options)
    assert name in str(caught.value)


def test_published_weights_fit_options_that_keep_the_shapes_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "deit_tiny_patch16_224.fb_in1k"
    published = timm.create_model(name)
    save_file(published.state_dict(), tmp_path / "published.safetensors")
    monkeypatch.setattr("limbeck.models.timm_models.is_unreachable", lambda host: True)
    monkeypatch.setattr(
        "limbeck.models.timm_models.try_to_load_from_cache", lambda *_: str(tmp_path / "published.safetensors")
    )
    same = create(name, text=name, options={"act_layer": "relu"})
    assert torch.equal(same.network.blocks[5].mlp.fc1.weight, published.blocks[5].mlp.fc1.weight)
    assert torch.equal(same.network.head.weight, published.head.weight)
    assert isinstance(same.network.blocks[5].mlp.act, nn.ReLU)
    assert same.provenance.source.startswith("timm: ")
    other_head = create(name, text=name, num_classes=7, input_size=(96, 96), options={"act_layer": "relu"})
    assert torch.equal(other_head.network.blocks[5].mlp.fc1.weight, published.blocks[5].mlp.fc1.weight)
    assert "head replaced: 1000 -> 7 classes, freshly initialised" in other_head.provenance.notes
    by_timm = create(name, text=name, num_classes=7, input_size=(96, 96))
    assert torch.equal(other_head.network.pos_embed, by_timm.network.pos_embed)
    for num_classes in (None, 7):
        for options in ({"depth": 6}, {"depth": 13}, {"embed_dim": 96}, {"global_pool": "avg"}, {"reg_tokens": 4}):
            text = f"{name}({options})"
            with pytest.raises(UserError, match=r"pretrained false.*do not fit VisionTransformer") as caught:
                create(name, text=text, num_classes=num_classes, options=options)
            assert text in str(caught.value)


def test_copies_of_a_model_are_independent_and_equal() -> None:
    model = opened("resnet18")
    twin = copy.deepcopy(model)
    assert torch.equal(model(images()).logits, twin(images()).logits)
    with torch.no_grad():
        twin.network.fc.bias.add_(1.0)
    torch.testing.assert_close(model(images()).logits + 1.0, twin(images()).logits)


def test_unknown_levels_names_and_sizes_are_explained() -> None:
    with pytest.raises(KeyError, match=r"has no level 'stages\.9'; it has stages\.0"):
        opened("resnet18")(images(), Request(("stages.9",)))
    with pytest.raises(UserError, match=r"Did you mean .*deit_tiny_patch16_224"):
        create("deit_tinny_patch16_224", text="deit_tinny_patch16_224", pretrained=False)
    with pytest.raises(UserError, match=r"has no weights 'resnet18\.nonsense'.*resnet18\.a1_in1k"):
        create("resnet18.nonsense", text="resnet18.nonsense", pretrained=False)
    with pytest.raises(UserError, match="cannot take images of 30x30 pixels"):
        create("inception_v3", text="inception_v3", pretrained=False, input_size=(30, 30))


def test_weights_that_cannot_be_fetched_say_how_to_give_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.models.timm_models.is_unreachable", lambda host: True)
    monkeypatch.setattr("limbeck.models.timm_models.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match=r"could not be fetched.*resnet18@weights\.safetensors"):
        create("resnet18", text="resnet18")
    with pytest.raises(UserError, match=r"could not be fetched.*No pretrained weights exist"):
        create("vit_small_patch16_18x2_224", text="vit_small_patch16_18x2_224")


@pytest.mark.compile
@pytest.mark.parametrize("name", [name for name in [*VITS, *PYRAMIDS] if name not in EXTRA])
@torch.no_grad()
def test_the_whole_pass_compiles_as_one_graph(name: str) -> None:
    model = opened(name)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    request = everything(model)
    expected, found = model(images(), request), compiled(images(), request)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for level, map_ in expected.maps.items():
        torch.testing.assert_close(found.maps[level], map_, atol=1e-4, rtol=1e-4)


def test_a_classifier_that_normalises_batches_opens() -> None:
    model = create("repvit_m0_9", text="repvit_m0_9", pretrained=False, num_classes=3, input_size=(32, 32))
    assert model.training and model.network.get_classifier().training
    outputs = model.eval()(torch.rand(2, 3, 32, 32), Request(pooled=True))
    assert outputs.logits.shape == (2, 3)
