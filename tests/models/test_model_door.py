import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.door import class_names_of, load_model, rebuild, save_model
from limbeck.models.weights import weights_hash
from limbeck.outputs import Request


def opened(name: str = "resnet18", **options: Any) -> Any:
    options = {"num_classes": 7, "pretrained": False, "input_size": (64, 64)} | options
    return load_model(name, **options).eval()


def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "convnext_atto",
        "torchvision:mobilenet_v3_small",
        "limbeck:resnet8x4",
        "mobilenetv3_small_050",
        "cait_xxs24_224",
        "timm:vit_tiny_patch16_224(depth=2, embed_dim=32, num_heads=2, patch_size=(8, 8))",
        "resnet18(layers=[1, 1, 1, 1], act_layer=silu)",
    ],
)
@torch.no_grad()
def test_saved_and_opened_by_its_folder_it_is_bit_for_bit_the_same(name: str, tmp_path: Path) -> None:
    model = opened(name)
    model.mean.add_(0.01)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.add_(0.1)
    save_model(model, tmp_path / "run", class_names=[f"c{i}" for i in range(7)])
    again: Any = load_model(str(tmp_path / "run")).eval()
    assert again.facts.levels == model.facts.levels
    assert again.facts.name == str(tmp_path / "run")
    assert again.rebuild == json.loads(json.dumps(model.rebuild))
    request = Request((model.facts.levels[0].name,), pooled=True, final=True)
    before, after = model(images(), request), again(images(), request)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.final, after.final)
    assert torch.equal(before.pooled, after.pooled)
    assert again.provenance.weights_sha256 == weights_hash(model)
    assert class_names_of(str(tmp_path / "run")) == tuple(f"c{i}" for i in range(7))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["model.json", "student.safetensors"]


def test_the_saved_file_fits_the_bare_library_model(tmp_path: Path) -> None:
    import timm

    model = opened()
    save_model(model, tmp_path, stem="model")
    bare = timm.create_model("resnet18", num_classes=7)
    bare.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert weights_hash(bare) == weights_hash(model)


def test_a_file_after_the_at_knows_its_number_of_classes(tmp_path: Path) -> None:
    model = opened()
    save_file({f"model.{k}": v for k, v in model.network.state_dict().items()}, tmp_path / "w.safetensors")
    name = f"resnet18@{tmp_path / 'w.safetensors'}"
    same = load_model(name, input_size=(64, 64)).eval()
    assert same.facts.num_classes == 7
    assert torch.equal(same(images()).logits, model(images()).logits)
    assert same.provenance.source == str(tmp_path / "w.safetensors")
    other = load_model(name, num_classes=3)
    assert other.facts.num_classes == 3
    assert "head replaced: 7 -> 3 classes, freshly initialised" in other.provenance.notes
    with pytest.raises(UserError, match=r"do not fit .*another architecture"):
        load_model(f"convnext_atto@{tmp_path / 'w.safetensors'}")


def test_a_run_with_another_number_of_classes_keeps_its_body(tmp_path: Path) -> None:
    model = opened()
    save_model(model, tmp_path)
    other: Any = load_model(str(tmp_path), num_classes=3)
    assert other.facts.num_classes == 3
    assert torch.equal(other.network.layer4[1].conv2.weight, model.network.layer4[1].conv2.weight)
    assert any("7 -> 3" in note for note in other.provenance.notes)
    assert not torch.equal(
        load_model(str(tmp_path), pretrained=False).state_dict()["network.conv1.weight"], model.network.conv1.weight
    )


def test_a_vit_opened_at_another_size_has_its_positions_resampled(tmp_path: Path) -> None:
    model = opened("deit_tiny_patch16_224")
    save_model(model, tmp_path)
    other: Any = load_model(str(tmp_path), input_size=(96, 96))
    assert other.facts.levels[0].grid == (6, 6)
    assert other.network.pos_embed.shape[1] == 37
    assert torch.equal(other.network.pos_embed[:, :1], model.network.pos_embed[:, :1])
    assert torch.equal(other.network.blocks[0].mlp.fc1.weight, model.network.blocks[0].mlp.fc1.weight)
    assert any("converted" in note for note in other.provenance.notes)


def test_rebuild_needs_nothing_but_plain_values() -> None:
    vit = "deit_tiny_patch16_224"
    for name in (vit, f"{vit}(depth=2)", "torchvision:mobilenet_v3_small", "limbeck:resnet8x4"):
        model = opened(name)
        again = rebuild(json.loads(json.dumps(model.rebuild)))
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        assert {key: tensor.shape for key, tensor in again.state_dict().items()} == shapes
        assert again.facts.levels == model.facts.levels
    with pytest.raises(UserError, match="another version"):
        rebuild({"library": "elsewhere", "num_classes": 1, "input_size": [1, 1]})


def test_options_are_recorded_where_there_are_some(tmp_path: Path) -> None:
    for name, options in (("resnet18", None), ("resnet18(layers=(1, 1, 1, 1))", {"layers": [1, 1, 1, 1]})):
        save_model(opened(name), tmp_path)
        assert json.loads((tmp_path / "model.json").read_text())["rebuild"].get("options") == options
    assert load_model(str(tmp_path)).facts.architecture == "timm:resnet18(layers=[1, 1, 1, 1])"
    with pytest.raises(UserError, match=r"NAME@weights\.safetensors"):
        rebuild(opened().rebuild | {"options": {"checkpoint_path": "somebodys.pth"}})


@torch.no_grad()
def test_options_and_a_weights_file_stand_together(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224(depth=2, embed_dim=32, num_heads=2)"
    model = opened(name)
    save_model(model, tmp_path, stem="it's @home (1)")
    file = tmp_path / "it's @home (1).safetensors"
    again = load_model(f"{name}@{file}", input_size=(64, 64)).eval()
    assert torch.equal(again(images()).logits, model(images()).logits)
    assert again.facts.name == f"{name}@{file}"
    assert again.rebuild == model.rebuild
    for other in ("vit_tiny_patch16_224", "vit_tiny_patch16_224(depth=3, embed_dim=32, num_heads=2)"):
        with pytest.raises(UserError, match="do not fit VisionTransformer"):
            load_model(f"{other}@{file}", input_size=(64, 64))


def test_networks_without_options_say_so() -> None:
    with pytest.raises(
        UserError, match=r"limbeck:resnet8 takes no options, and 'limbeck:resnet8\(depth=3\)' gives depth"
    ):
        load_model("limbeck:resnet8(depth=3)")
    with pytest.raises(UserError, match="There is no network limbeck:resnet9"):
        load_model("limbeck:resnet9(depth=3)")


def test_damaged_runs_are_explained(tmp_path: Path) -> None:
    save_model(opened("limbeck:resnet8x4"), tmp_path)
    weights, record = tmp_path / "student.safetensors", tmp_path / "model.json"
    good_weights, good_record = weights.read_bytes(), record.read_text()
    weights.write_bytes(good_weights[:-5])
    with pytest.raises(UserError, match="truncated"):
        load_model(str(tmp_path))
    weights.write_bytes(good_weights[:-1] + bytes([good_weights[-1] ^ 1]))
    with pytest.raises(UserError, match="SHA-256 differs"):
        load_model(str(tmp_path))
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"student\.safetensors"):
        load_model(str(tmp_path))
    record.write_text(good_record[:40])
    with pytest.raises(UserError, match="not readable JSON"):
        load_model(str(tmp_path))
    record.write_text(json.dumps({"rebuild": {}}))
    with pytest.raises(UserError, match="lacks weights, sha256"):
        load_model(str(tmp_path))
    record.write_text(json.dumps(json.loads(good_record) | {"weights": "../elsewhere.safetensors"}))
    with pytest.raises(UserError, match="outside its folder"):
        load_model(str(tmp_path))


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(opened("limbeck:resnet8x4"), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("limbeck.models.record.save_file", fail)
    with pytest.raises(UserError, match="No space to write"):
        save_model(opened("limbeck:resnet8x4"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_without_recorded_classes_give_none() -> None:
    assert class_names_of("resnet18") is None
    assert class_names_of("limbeck:resnet8x4") is None
