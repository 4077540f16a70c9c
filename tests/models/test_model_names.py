import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.call_text import parse_options, split_call, write_call
from limbeck.errors import UserError
from limbeck.models.names import file_stem, has_own_weights, parse_model_name
from limbeck.run import choose_run


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


@pytest.mark.parametrize(
    ("text", "kind", "name", "options"),
    [
        ("vit_tiny_patch16_224(depth=6)", "timm", "vit_tiny_patch16_224", {"depth": 6}),
        ("timm:vit (depth=6, act_layer=relu)", "timm", "vit", {"depth": 6, "act_layer": "relu"}),
        ("timm:vit.tag(x=1.5)", "timm", "vit.tag", {"x": 1.5}),
        (
            "limbeck:ipe(pooling='gap', branches='fine+mid')",
            "limbeck",
            "ipe",
            {"pooling": "gap", "branches": "fine+mid"},
        ),
        ("package.module:factory(width=8)", "factory", "package.module:factory", {"width": 8}),
        ("resnet18()", "timm", "resnet18", {}),
        ("vit(a='(', b=')@x', c=\"it's\")", "timm", "vit", {"a": "(", "b": ")@x", "c": "it's"}),
        ("vit(a=(1, (2, 3)), b={'c': (4,)})", "timm", "vit", {"a": [1, [2, 3]], "b": {"c": [4]}}),
    ],
)
def test_options_of_models(text: str, kind: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    parsed = parse_model_name(text)
    assert (parsed.kind, parsed.name, parsed.options, parsed.weights) == (kind, name, options, None)
    file = tmp_path / "it's (1) @home.safetensors"
    file.write_bytes(b"")
    with_file = parse_model_name(f"{text}@{file}")
    assert (with_file.kind, with_file.name, with_file.options, with_file.weights) == (kind, name, options, file)
    assert parse_model_name(write_call(f"{kind}:{name}" if kind != "factory" else name, options)).options == options


def test_options_written_are_read_back() -> None:
    options = {"a": 1, "b": -2.5, "c": 'it\'s "two" (words)', "d": [True, None, ("x", {"y": 0.1})]}
    name, arguments, rest = split_call(write_call("name", options), "model")
    assert (name, parse_options(arguments, "name"), rest) == ("name", options, "")
    assert write_call("name", {}) == "name"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchvision:resnet18(depth=6)", "torchvision's models, which take none.*timm's and limbeck's.*factories"),
        ("hf:google/vit(depth=6)", "transformers' models, which take none"),
        ("vit(6)", r"The options of 'vit\(6\)' cannot be read"),
        ("vit(depth=6", "The model 'vit.depth=6' cannot be read: a bracket is not closed"),
        ("vit(depth='6)", "The model .* cannot be read: a ' is not closed"),
        ("vit(depth=6)x", "'x' follows its options"),
        ("vit(depth=6)(width=3)", "follows its options"),
        ("vit(depth=6)@", "no weights file after the @"),
        ("(depth=6)", "is not a model's name"),
        ("two words(depth=6)", "is not a model's name"),
        ("vit(depth=2+3)", "is not a plain value"),
        ("vit(depth=print())", "is not a plain value"),
        ("vit(num_classes=3)", "num_classes is no option of a model's name.*images' labels"),
        ("my:factory(pretrained=True)", "--student_pretrained"),
        ("limbeck:resnet8(input_size=64)", "--student_size"),
        ("vit(drop_path=0.1)", "Use --drop_path"),
    ],
)
def test_options_that_cannot_be_are_explained(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_model_name(text)


def test_parentheses_in_paths_are_the_paths_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run (1)", "resnet18(depth=3)", "it's (x=1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text("{}")
        for text in (name, str(tmp_path / name), f"./{name}"):
            parsed = parse_model_name(text)
            assert (parsed.kind, parsed.name, parsed.options) == ("run", str(Path(text)), {})
    (tmp_path / "saved (1)").mkdir()
    assert parse_model_name("hf:saved (1)").name == "saved (1)"
    assert parse_model_name(f"hf:{tmp_path}/saved (1)").name == f"{tmp_path}/saved (1)"
    with pytest.raises(UserError, match=r"holds no model\.json"):
        parse_model_name("./saved (1)")
    with pytest.raises(FileNotFoundError, match=r"nowhere \(1\) does not exist"):
        parse_model_name("./nowhere (1)")
    weights = tmp_path / "saved (1)" / "w(1).safetensors"
    weights.write_bytes(b"")
    assert parse_model_name(f"resnet18@{weights}").weights == weights


def test_runs_take_no_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    (tmp_path / "resnet18" / "model.json").write_text("{}")
    for text in ("resnet18(depth=3)", "./resnet18(depth=3)", f"{tmp_path}/resnet18(depth=3)"):
        with pytest.raises(UserError, match="folders, which take none"):
            parse_model_name(text)
    assert parse_model_name("timm:resnet18(depth=3)").options == {"depth": 3}


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("limbeck:resnet8", "limbeck_resnet8"),
        ("hf:google/vit-base", "vit_base"),
        ("runs/teacher", "teacher"),
        ("limbeck:ipe(pooling='gap', branches='a/b')", "limbeck_ipe_pooling_gap_branches_a_b"),
        ("vit(depth=6)@somewhere/weights.safetensors", "vit_depth_6"),
        ("resnet18@somewhere/weights.safetensors", "resnet18"),
    ],
)
def test_names_of_files_are_plain(text: str, stem: str, tmp_path: Path) -> None:
    assert file_stem(text) == stem
    assert (
        choose_run("auto", "train", text, "digits", resume=False, parent=tmp_path).path.name == f"train-{stem}-digits-1"
    )


def test_names_of_files_stay_short() -> None:
    assert re.fullmatch("vit_layers_[0-9_]{48,49}", file_stem(f"vit(layers={list(range(200))})"))


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
    assert has_own_weights(f"resnet18(x=1)@{file}")
    assert has_own_weights("resnet18.a1_in1k(x=1)")
    assert not has_own_weights("resnet18(x=0.5, y='a.b@c')")
    assert not has_own_weights("resnet18")
    assert not has_own_weights("torchvision:resnet18")
    assert not has_own_weights("package.module:factory")


def test_names_are_parsed_without_torch() -> None:
    code = (
        "import sys; from limbeck.models.names import parse_model_name; "
        "parse_model_name('resnet18(x=1)'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
