import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.door import class_names_of, load_model, save_model
from limbeck.models.weights import weights_hash
from limbeck.outputs import Request

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")

TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
PYRAMID: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", TOKENS),
    "dinov2_with_registers": ("Dinov2WithRegistersForImageClassification", TOKENS),
    "beit": ("BeitForImageClassification", TOKENS),
    "resnet": ("ResNetForImageClassification", {**PYRAMID, "layer_type": "basic"}),
    "convnext": ("ConvNextForImageClassification", {**PYRAMID, "image_size": 64}),
    "swin": (
        "SwinForImageClassification",
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "image_size": 64, "window_size": 2},
    ),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"image_size": 64}),
}
PREFIX = {"vit": 1, "dinov2_with_registers": 5, "beit": 1}


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model saved by transformers, with every parameter mattering."""
    torch.manual_seed(0)
    kind = getattr(request, "param", "vit")
    architecture, values = CONFIGS[kind]
    config = transformers.AutoConfig.for_model(kind, num_labels=7, **values)
    config.id2label = {number: f"class {number}" for number in range(7)}
    network = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    network.save_pretrained(tmp_path / kind)
    processor = {
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "size": {"height": 64, "width": 64},
        "resample": 2,
    }
    (tmp_path / kind / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / kind


def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def everything(model: Any) -> Request:
    return Request(tuple(level.name for level in model.facts.levels), pooled=True, final=True, class_tokens=True)


@pytest.mark.parametrize("folder", CONFIGS, indirect=True)
@torch.no_grad()
def test_one_pass_gives_the_librarys_logits_and_the_promised_maps(folder: Path) -> None:
    model = load_model(f"hf:{folder}").eval()
    bare = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    by_hand = torch.stack([(images()[:, c] - (0.4 + c / 10)) / (0.2 + c / 10) for c in range(3)], 1)
    expected = bare(pixel_values=by_hand).logits
    entered: list[Tensor] = []
    bare.classifier.register_forward_pre_hook(lambda _, given: entered.append(given[0].flatten(1)))
    bare(pixel_values=by_hand)
    outputs = model(images(), everything(model))
    assert expected.std() > 1e-3
    torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.pooled, entered[0], atol=1e-5, rtol=1e-5)
    assert len(model.facts.levels) >= 3
    for level in model.facts.levels:
        assert outputs.maps[level.name].shape == (2, level.channels, *level.grid)
    assert model.facts.final is not None
    assert outputs.final is not None
    assert outputs.final.shape == (2, model.facts.final.channels, *model.facts.final.grid)
    assert model.interpolation == "bilinear"


@pytest.mark.parametrize("folder", PREFIX, indirect=True)
@torch.no_grad()
def test_maps_are_the_blocks_patch_tokens(folder: Path) -> None:
    model = load_model(f"hf:{folder}").eval()
    inputs = model.prepare(images())
    network: Any = model.network
    states = network(pixel_values=inputs, output_hidden_states=True).hidden_states[1:]
    outputs = model(images(), everything(model))
    prefix = PREFIX[folder.name]
    for number, sequence in enumerate(states):
        assert sequence.shape[1] == prefix + 16
        map_ = outputs.maps[f"blocks.{number}"]
        assert all(torch.equal(map_[:, :, cell // 4, cell % 4], sequence[:, prefix + cell]) for cell in range(16))
    if folder.name == "vit":
        normed = network.vit.layernorm(states[-1])[:, 1:].transpose(1, 2).reshape(2, 32, 4, 4)
        torch.testing.assert_close(outputs.final, normed)


def test_strides_of_pyramids() -> None:
    network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**PYRAMID, layer_type="basic"))
    from limbeck.models.transformers_models import TransformersModel

    options: dict[str, Any] = {
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "input_size": (64, 64),
    }
    model = TransformersModel(network, text="hf:test", notes=[], **options)
    assert [(level.name, level.channels, level.stride) for level in model.facts.levels] == [
        ("stages.0", 8, 4),
        ("stages.1", 16, 8),
        ("stages.2", 24, 16),
        ("stages.3", 32, 32),
    ]


def test_class_names_and_a_new_head(folder: Path) -> None:
    name = f"hf:{folder}"
    assert class_names_of(name) == tuple(f"class {number}" for number in range(7))
    model = load_model(name, num_classes=3)
    assert model.facts.num_classes == 3
    assert "head replaced: 7 -> 3 classes, freshly initialised" in model.provenance.notes
    body = {k: v for k, v in load_model(name).state_dict().items() if "classifier" not in k}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in body.items())


@torch.no_grad()
def test_another_input_size_stretches_the_position_embedding(folder: Path) -> None:
    model = load_model(f"hf:{folder}", input_size=(96, 96)).eval()
    assert model.facts.levels[0].grid == (6, 6)
    network: Any = model.network
    inputs = model.prepare(images())
    assert inputs.shape[-1] == 96
    torch.testing.assert_close(model(images()).logits, network(inputs, interpolate_pos_encoding=True).logits)


@pytest.mark.parametrize("folder", ["vit", "resnet"], indirect=True)
def test_saved_and_opened_again_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    model = load_model(f"hf:{folder}").eval()
    save_model(model, tmp_path / "run")
    again = load_model(str(tmp_path / "run")).eval()
    assert weights_hash(again) == weights_hash(model)
    assert torch.equal(again(images()).logits, model(images()).logits)


def test_pickled_weights_and_missing_folders_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="must be safetensors"):
        load_model(f"hf:{folder}")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="Give a folder saved by transformers"):
        load_model(f"hf:{folder}")


@pytest.mark.compile
@pytest.mark.parametrize("folder", ["vit", "resnet", "swin", "dinov2_with_registers"], indirect=True)
@torch.no_grad()
def test_the_whole_pass_compiles_as_one_graph(folder: Path) -> None:
    model = load_model(f"hf:{folder}").eval()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected, found = model(images(), everything(model)), compiled(images(), everything(model))
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for level, map_ in expected.maps.items():
        torch.testing.assert_close(found.maps[level], map_, atol=1e-4, rtol=1e-4)
