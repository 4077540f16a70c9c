import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.models.names import has_own_weights, parse_model_name


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("resnet18", "timm", "resnet18"),
        ("deit_tiny_patch16_224.fb_in1k", "timm", "deit_tiny_patch16_224.fb_in1k"),
        ("timm:resnet18", "timm", "resnet18"),
        ("torchvision:resnet18", "torchvision", "resnet18"),
        ("hf:google/vit-base-patch16-224", "hf", "google/vit-base-patch16-224"),
        ("limbeck:resnet8x4", "limbeck", "resnet8x4"),
        ("package.module:factory", "factory", "package.module:factory"),
        ("module:Class.method", "factory", "module:Class.method"),
    ],
)
def test_kinds(text: str, kind: str, name: str) -> None:
    parsed = parse_model_name(text)
    assert (parsed.kind, parsed.name, parsed.weights, parsed.text) == (kind, name, None, text)


def test_a_folder_with_a_model_file_is_a_run_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "resnet18"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_model_name("resnet18").kind == "timm"
    (folder / "model.json").write_text("{}")
    assert parse_model_name("resnet18").kind == "run"
    assert parse_model_name(str(folder)).name == str(folder)


def test_weights_after_an_at(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"")
    for model in ("resnet18", "torchvision:resnet18", "package.module:factory"):
        parsed = parse_model_name(f"{model}@{file}")
        assert parsed.weights == file
        assert parsed == parse_model_name(f"{model}@{file}")
        assert parsed.name == parse_model_name(model).name
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        parse_model_name(f"resnet18@{tmp_path / 'missing.safetensors'}")


@pytest.mark.parametrize("suffix", [".bin", ".pkl", ".ckpt"])
def test_pickles_are_refused_with_the_way_out(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"A pickle may run code.*save_file"):
        parse_model_name(f"resnet18@{file}")


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        parse_model_name(str(tmp_path / "nothing"))
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds no model\.json.*run-1"):
        parse_model_name(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="write hf:"):
        parse_model_name(str(tmp_path))
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file, not a model"):
        parse_model_name(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("text", ["", "timm:", "@w.safetensors", "resnet18@", "two words", "a:b:c"])
def test_nonsense_is_explained(text: str) -> None:
    with pytest.raises(UserError, match="A model is a timm name"):
        parse_model_name(text)


def test_which_names_mean_weights(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"")
    assert has_own_weights("resnet18.a1_in1k")
    assert has_own_weights("hf:google/vit")
    assert has_own_weights(f"resnet18@{file}")
    assert not has_own_weights("resnet18")
    assert not has_own_weights("torchvision:resnet18")
    assert not has_own_weights("package.module:factory")


def test_names_are_parsed_without_torch() -> None:
    code = (
        "import sys; from limbeck.models.names import parse_model_name; "
        "parse_model_name('resnet18'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
