import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.custom import CustomModel
from limbeck.models.door import load_model, rebuild, save_model
from limbeck.outputs import Request

SOURCE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.mean, self.std, self.input_size = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 32
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.act(self.second(self.first(x)))).flatten(1))

def small(num_classes: int = 4):
    return Small(num_classes)

def fixed():
    return Small(4)

def anonymous():
    network = Small(4)
    del network.mean, network.std, network.input_size
    return network

def nothing():
    return "a string"

def door():
    from limbeck.models import load_model
    return load_model("limbeck:resnet8x4", num_classes=4, pretrained=False)

class Wide(Small):
    def __init__(self, num_classes=4, *, width, scale=1.0):
        super().__init__(num_classes)
        self.second, self.fc = nn.Conv2d(8, width, 3, stride=2, padding=1), nn.Linear(width, num_classes)

def wide(num_classes: int = 4, *, width: int, scale: float = 1.0) -> nn.Module:
    return Wide(num_classes, width=width, scale=scale)

def unannotated(width=3):
    raise AssertionError("it must not be called")

def anything(**options) -> nn.Module:
    network = Small(4)
    network.options = options
    return network

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one, with a module of factories; its name is unique, since modules stay imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_factories.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "own_factories", raising=False)
    return tmp_path


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_any_module_serves_and_shows_its_childrens_maps(here: Path) -> None:
    model = load_model("own_factories:small", num_classes=6).eval()
    assert isinstance(model, CustomModel)
    network = model.network
    inputs = torch.stack([(images()[:, c] - (c + 1) / 10) / (0.5 + c / 10) for c in range(3)], 1)
    first = network.first(inputs)  # type: ignore[operator]
    last = network.act(network.second(first))  # type: ignore[operator]
    outputs = model(images(), Request(("stages.1", "stages.0"), pooled=True, final=True))
    torch.testing.assert_close(outputs.logits, network(inputs))
    torch.testing.assert_close(outputs.maps["stages.0"], first)
    torch.testing.assert_close(outputs.maps["stages.1"], last)
    torch.testing.assert_close(outputs.final, last)
    torch.testing.assert_close(outputs.pooled, last.mean((2, 3)))
    assert [(level.channels, level.stride, level.grid) for level in model.facts.levels] == [
        (8, 2, (16, 16)),
        (16, 4, (8, 8)),
    ]
    assert any("hooks" in note for note in model.provenance.notes)


def test_hooks_do_not_outlive_the_pass_and_copies_are_independent(here: Path) -> None:
    model = load_model("own_factories:small").eval()
    model(images(), Request(("stages.0",), pooled=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(twin.parameters())).zero_()
    request = Request(("stages.0",))
    assert not torch.equal(twin(images(), request).maps["stages.0"], model(images(), request).maps["stages.0"])


def test_what_is_assumed_is_noted(here: Path) -> None:
    model = load_model("own_factories:anonymous", input_size=(64, 64))
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert any("ImageNet's are assumed" in note for note in model.provenance.notes)
    assert model.facts.input_size == (64, 64)


def test_a_vision_model_is_used_as_it_is(here: Path) -> None:
    model = load_model("own_factories:door")
    assert [level.name for level in model.facts.levels] == ["stages.0", "stages.1", "stages.2"]
    assert model.rebuild["factory"] == "own_factories:door"


def test_saved_and_opened_again_it_is_the_same(here: Path) -> None:
    for factory in ("small", "door"):
        model = load_model(f"own_factories:{factory}").eval()
        save_model(model, here / factory)
        assert torch.equal(load_model(str(here / factory)).eval()(images()).logits, model(images()).logits)


@pytest.mark.parametrize("factory", ["wide", "Wide"])
def test_options_are_the_factorys_arguments(here: Path, factory: str) -> None:
    model = load_model(f"own_factories:{factory}(width=24)", num_classes=6).eval()
    assert (model.facts.pooled_channels, model.facts.num_classes) == (24, 6)
    assert model.rebuild["options"] == {"width": 24}
    save_model(model, here / factory)
    again = load_model(str(here / factory)).eval()
    assert torch.equal(again(images()).logits, model(images()).logits)
    assert again.facts.architecture == f"factory:own_factories:{factory}(width=24)"
    assert "options" not in load_model("own_factories:small").rebuild


def test_options_that_a_factory_does_not_take_are_explained(here: Path) -> None:
    for name, reason in (
        ("own_factories:wide", "missing a required.*argument: 'width'.*factory.option=value"),
        ("own_factories:wide(width=8, wdith=9)", "unexpected keyword argument 'wdith'.*width: int"),
        ("own_factories:unannotated(width=8)", r"does not say that it returns a model.*unannotated\(...\) -> torch.nn"),
        ("own_factories:wide(width=8, num_classes=3)", "images' labels"),
    ):
        with pytest.raises(UserError, match=reason):
            load_model(name)
    given = {"first": [1, "word"], "second": {"third": None}}
    model = load_model("own_factories:anything(first=(1, word), second={third: None})")
    assert model.network.options == given  # type: ignore[union-attr]


@pytest.mark.parametrize("factory", ["os:system", "subprocess:getoutput", "os:makedirs"])
def test_a_name_from_elsewhere_runs_no_plain_function(here: Path, factory: str) -> None:
    option = {"os:system": "command", "subprocess:getoutput": "cmd", "os:makedirs": "name"}[factory]
    with pytest.raises(UserError, match="does not say that it returns a model"):
        load_model(f"{factory}({option}='mkdir made')")
    made_of = {"library": "factory", "factory": factory, "options": {option: "mkdir made"}}
    with pytest.raises(UserError, match="does not say that it returns a model"):
        rebuild(made_of | {"num_classes": 4, "input_size": [32, 32]})
    assert not [path for path in here.iterdir() if "made" in path.name]


def test_mistakes_are_explained(here: Path) -> None:
    for name, reason in (
        ("nowhere_at_all:f", "module nowhere_at_all, which is not installed.*Known prefixes"),
        ("own_factories:missing", "has no 'missing'"),
        ("own_factories:number", "not callable"),
        ("own_factories:nothing", "returned str"),
    ):
        with pytest.raises(UserError, match=reason):
            load_model(name)
    with pytest.raises(UserError, match=r"4 classes, and 9 are needed.*num_classes"):
        load_model("own_factories:fixed", num_classes=9)
    (here / "broken_factories.py").write_text("import a_library_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        load_model("broken_factories:f")
