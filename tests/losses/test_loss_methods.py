"""The text of `--method`, and the losses made from it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import limbeck.losses
from limbeck.errors import UserError
from limbeck.losses import METHODS, MethodSpec, build_losses, parse_methods


def test_options_are_literals_and_plus_inside_brackets_or_quotes_does_not_split() -> None:
    text = "vitkd + nkd(gamma=-1.5e0, weight=0.5)+reviewkd(pairs=[('a+b', \"c)\")], mid_channels=None)"
    vitkd, nkd, reviewkd = parse_methods(text)
    assert vitkd == MethodSpec("vitkd", "limbeck.losses.vitkd:ViTKDLoss")
    assert nkd.options == {"gamma": -1.5, "weight": 0.5}
    assert reviewkd.options == {"pairs": [("a+b", "c)")], "mid_channels": None}


def test_a_word_without_quotes_is_a_text() -> None:
    for bare, quoted in (
        ("manifold(on_grid_mismatch=merge)", "manifold(on_grid_mismatch='merge')"),
        ("kd(x=[one, (two, 'three')], y={name: word})", "kd(x=['one', ('two', 'three')], y={'name': 'word'})"),
    ):
        assert parse_methods(bare) == parse_methods(quoted)
    assert parse_methods("kd(a=True, b=False, c=None)")[0].options == {"a": True, "b": False, "c": None}


def test_none_is_no_method() -> None:
    assert parse_methods("none") == []
    assert parse_methods(" NONE ") == []


def test_a_class_is_a_method() -> None:
    assert parse_methods("my.losses:MyLoss(x=1)") == [MethodSpec("MyLoss", "my.losses:MyLoss", {"x": 1})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty part"),
        ("kd+", "empty part"),
        ("kd++nkd", "empty part"),
        ("vitdk", "no method 'vitdk'. Did you mean 'vitkd'"),
        ("dino", "Known: none, kd, nkd, reviewkd, manifold, vitkd"),
        ("none+kd", "'none' stands alone"),
        ("kd(4.0)", r"The options of 'kd\(4.0\)' cannot be read"),
        ("kd(temperature=4.0", "not closed"),
        ("kd(temperature='4)", "not closed"),
        ("kd)", "not closed, or one too many"),
        ("kd(temperature=4.0)x", "cannot be read"),
        ("kd(temperature=four.five)", "temperature=four.five is not a plain value"),
        ("kd(temperature=-four)", "temperature=-four is not a plain value"),
        ("kd(temperature=true)", "temperature=true is not a plain value.*True, False, None"),
        ("kd(temperature=[none])", "is not a plain value"),
        ("kd(temperature={1, 2})", "is not a plain value"),
        ("kd(temperature=b'4')", "is not a plain value"),
        ("kd(temperature=[2j])", "is not a plain value"),
        ("kd(temperature={4: 'four'})", "is not a plain value"),
        ("kd(temperature=four words)", "unless it is one word"),
        ("kd(temperature=__import__('os').getcwd())", "is not a plain value"),
        ("kd(temperature=2**3)", "is not a plain value"),
        ("kd(temperature=1, temperature=2)", "repeated"),
        ("kd(**{'temperature': 1})", "cannot be read"),
        ("kd(temperature=)", "cannot be read"),
        ("kd(temperature=1)(weight=2)", "cannot be read"),
        ("a/b:C", "package.module:Class"),
        ("kd nkd", "joined by"),
        pytest.param("kd(temperature=" + "-" * 900 + "1)", "is not a plain value", id="deep"),
        pytest.param("kd(temperature=1" + "+1" * 2000 + ")", "is not a plain value", id="long"),
    ],
)
def test_unreadable_text_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_methods(text)


def test_names_are_light() -> None:
    """A misspelt method is refused before torch is loaded."""
    code = "import sys, limbeck.losses as l; l.parse_methods('kd'); assert 'torch' not in sys.modules; print(l.KD)"
    source = Path(limbeck.losses.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(source)}, capture_output=True, text=True, check=False
    )
    assert "limbeck.losses.kd.KD" in done.stdout, done.stderr


def test_every_public_name_resolves() -> None:
    for name in limbeck.losses.__all__:
        assert getattr(limbeck.losses, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = limbeck.losses.nothing_like_it


# For a method of detectors, one that it takes.
DETECTORS = {
    "roi_kd": {"family": "two_stage"},
    "mask_kd": {"family": "mask_queries", "has_masks": True, "num_queries": 5},
}
ANY_DETECTOR = {
    "kind": "block",
    "strides": (16, 16, 16),
    "family": "queries",
    "num_queries": 5,
    "corner_bins": 4,
    "corner_scale": (0.5, 4.0),
    "reads_queries": True,
}


@pytest.mark.parametrize("name", METHODS)
def test_the_list_of_methods_tells_the_truth(name: str, plain, detector) -> None:
    module, _, class_name = METHODS[name].path.partition(":")
    loss_class = getattr(importlib.import_module(module), class_name)
    assert loss_class.needs_labels == METHODS[name].needs_labels
    assert loss_class.needs_teacher == METHODS[name].needs_teacher
    facts = {"classification": plain(), "detection": detector(**DETECTORS.get(name, ANY_DETECTOR))}
    for task, own in facts.items():
        if task in METHODS[name].tasks:
            (built,) = build_losses(parse_methods(name), own, own)
            assert type(built.module) is loss_class
        else:
            with pytest.raises(UserError, match=name):
                build_losses(parse_methods(name), own, own)


def test_options_arrive_in_the_annotated_types(pyramid) -> None:
    (built,) = build_losses(parse_methods("kd(temperature=2)"), pyramid(), pyramid())
    assert isinstance(built.module.temperature, float)
    text = "reviewkd(pairs=[['stages.0', 'stages.1']], mid_channels=3)"
    (built,) = build_losses(parse_methods(text), pyramid(), pyramid())
    assert [(p.student, p.teacher) for p in built.module.pairs] == [("stages.0", "stages.1")]
    assert built.module.reviewkd.mid_channels == 3


def test_weights_default_to_the_methods_own(plain, pyramid) -> None:
    facts = plain()
    kd, nkd, again = build_losses(parse_methods("kd+nkd(gamma=2, weight=0.5, warmup_epochs=3)+kd"), facts, facts)
    assert (kd.name, kd.weight, kd.warmup_epochs) == ("kd", 0.9, 0.0)
    assert (nkd.weight, nkd.warmup_epochs, nkd.module.gamma) == (0.5, 3.0, 2)
    assert again.name == "kd#2"
    student, teacher = pyramid("limbeck:resnet20"), pyramid("limbeck:resnet56")
    (review,) = build_losses(parse_methods("reviewkd"), student, teacher)
    assert (review.weight, review.warmup_epochs) == (0.6, 20.0)
    (free,) = build_losses(parse_methods("reviewkd(weight=0, warmup_epochs=0)"), student, teacher)
    assert (free.weight, free.warmup_epochs) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd(temprature=2)", r"kd has no option 'temprature'. Its options: temperature=4.0; and for every method"),
        ("kd(temperature='hot')", "temperature is 'hot'; it must be a finite number"),
        ("kd(temperature=hot)", "temperature is 'hot'; it must be a finite number"),
        ("kd(temperature=True)", "temperature is True"),
        ("kd(temperature=1e999)", "temperature is inf"),
        pytest.param("kd(temperature=" + "9" * 400 + ")", "it must be a finite number", id="beyond-float"),
        pytest.param("kd(weight=" + "9" * 400 + ")", "it must be a number, 0 or more", id="weight-beyond-float"),
        ("kd(weight=-1)", "weight is -1"),
        ("kd(weight='much')", "weight is 'much'"),
        ("kd(warmup_epochs=[1])", "warmup_epochs is"),
        ("manifold(first=1.5)", "first is 1.5; it must be a whole number"),
        ("manifold(on_grid_mismatch='crop')", "one of 'resize', 'merge', 'error'"),
        ("reviewkd(pairs='stages.0')", r"a list of \(a quoted text, a quoted text\) or None"),
        ("reviewkd(pairs=[('a',)])", "pairs is"),
        ("reviewkd(mid_channels=0.5)", "a whole number or None"),
        ("no_such_module:Loss", "'no_such_module', which cannot be found"),
        ("limbeck.losses.no_such:Loss", "cannot be found"),
        ("limbeck.losses.kd:kd_loss", "must define kd_loss as a subclass"),
        ("limbeck.losses.kd:Missing", "must define Missing"),
        ("limbeck.losses.base:DistillationLoss", "defines no forward"),
    ],
)
def test_wrong_options_are_named(text: str, message: str, plain) -> None:
    with pytest.raises(UserError, match=message):
        build_losses(parse_methods(text), plain(), plain())


MINE = """
import torch
from limbeck.losses import DistillationLoss

class Gap(DistillationLoss):
    def __init__(self, student, teacher, *, power: int, scale: float = 1.0):
        super().__init__(student, teacher)
        self.power, self.scale = power, scale

    def forward(self, student, teacher, target=None):
        return self.scale * (student.logits - teacher.logits).abs().pow(self.power).mean()
"""


def test_a_users_own_loss_in_the_current_folder(tmp_path: Path, monkeypatch, plain, make_outputs) -> None:
    (tmp_path / "my_own_losses.py").write_text(MINE)
    (tmp_path / "my_broken_losses.py").write_text("import not_installed_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (built,) = build_losses(parse_methods("my_own_losses:Gap(power=2, scale=3, weight=2)"), plain(), plain())
    assert (built.name, built.weight) == ("Gap", 2.0)
    own, other = (
        make_outputs(plain(), built.module.student_request),
        make_outputs(plain(), built.module.teacher_request, seed=1),
    )
    expected = 3 * torch.nn.functional.mse_loss(own.logits, other.logits)
    torch.testing.assert_close(built.module(own, other), expected)
    with pytest.raises(UserError, match="Gap needs power"):
        build_losses(parse_methods("my_own_losses:Gap"), plain(), plain())
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        build_losses(parse_methods("my_broken_losses:Gap"), plain(), plain())


ANNOTATED = """
from collections.abc import Sequence
from typing import Any, List, Protocol
from limbeck.losses import DistillationLoss

class Shape(Protocol):
    sides: int

class Base(DistillationLoss):
    def forward(self, student, teacher, target=None):
        return self.x

class Anything(Base):
    def __init__(self, student, teacher, *, x: Any = 0):
        super().__init__(student, teacher)
        self.x = x

class Shaped(Anything):
    def __init__(self, student, teacher, *, x: Shape = 0):
        super().__init__(student, teacher, x=x)

class Bare(Anything):
    def __init__(self, student, teacher, *, x: Sequence = (), y: List = ()):
        super().__init__(student, teacher, x=x)

class Unresolved(Anything):
    def __init__(self, student, teacher, *, x: "OnlyForTheTypeChecker" = 0):
        super().__init__(student, teacher, x=x)
"""


@pytest.mark.parametrize("name", ["Anything", "Shaped", "Bare", "Unresolved"])
def test_annotations_that_cannot_be_checked_take_anything(name: str, tmp_path: Path, monkeypatch, plain) -> None:
    (tmp_path / "my_annotated_losses.py").write_text(ANNOTATED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (built,) = build_losses(parse_methods(f"my_annotated_losses:{name}(x=[1, 'a'])"), plain(), plain())
    assert built.module.x == [1, "a"]
