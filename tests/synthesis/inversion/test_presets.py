"""Every published method runs on the teachers that it is for, refuses the others, and has the published settings."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.call_text import parse_options
from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.outputs import Level
from limbeck.synthesis.base import Setting
from limbeck.synthesis.build import build_synthesis
from limbeck.synthesis.inversion.engine import PixelInversion
from limbeck.synthesis.inversion.presets import PRI, PSAQ, SMI, DeepInversion, Invert, MimiQ, PlugIn
from limbeck.synthesis.moments import collect, load, save
from limbeck.synthesis.names import parse_synthesis
from limbeck.synthesis.priors.base import Prior

from .conftest import CNN, CONVNEXT, VIT, setting, teacher

RUNS = [
    (name, text)
    for name in (VIT, CNN, CONVNEXT)
    for text in (
        "invert(iterations=3)",
        "plugin(iterations=3, ensemble=2)",
        "smi(iterations=4)",
        "pri(iterations=4)",
    )
] + [
    (VIT, "psaq(iterations=3)"),
    (VIT, "psaq(iterations=2, density='gaussian')"),
    (VIT, "mimiq(iterations=3, diversity=1.0)"),
    (VIT, "pri(iterations=4, pieces=2, choose='random', output='pieces')"),
    (VIT, "smi(iterations=4, drop=0.5, moments=[0.25, 0.5])"),
    (VIT, "invert(iterations=4, sparse='smi', border=0.1)"),
    (CNN, "deepinversion(iterations=3)"),
    (CNN, "deepinversion(iterations=3, tv_l1=0.1, l2=1e-5, keep='last')"),
]


def build(text: str, given: Setting) -> PixelInversion:
    way = build_synthesis(parse_synthesis(text)[0], given)
    assert isinstance(way, PixelInversion)
    return way


@pytest.mark.parametrize(("name", "text"), RUNS, ids=lambda value: str(value).partition("_")[0])
def test_every_way_makes_pictures(name: str, text: str) -> None:
    way = build(text, setting(name))
    made = way.grow(None, 0)
    assert len(made) == (8 if "pieces'" in text else 4)
    assert made.images.shape[1:] == (3, 32, 32)
    assert made.images.isfinite().all() and made.images.min() >= 0 and made.images.max() <= 1
    assert made.asked is not None and len(made.asked) == len(made)
    assert {"loss", "agreement", "fed"} <= set(way.log())
    assert not way.reads_student


@pytest.mark.parametrize("text", ["psaq", "mimiq"])
@pytest.mark.parametrize("name", [CNN, CONVNEXT])
def test_attention_is_required_where_nothing_works_without(text: str, name: str) -> None:
    with pytest.raises(UserError, match="Use invert"):
        build(text, setting(name))


def test_heads_are_compared_only_where_there_are_two() -> None:
    single = Setting(teacher("vit_tiny_patch16_224(patch_size=8, embed_dim=32, depth=2, num_heads=1)"), (32, 32))
    with pytest.raises(UserError, match="second head"):
        MimiQ(single)
    assert "heads" not in {term.name for term in Invert(single).plan.terms}


@pytest.mark.parametrize("name", [VIT, CONVNEXT])
def test_deepinversion_requires_batchnorm_and_names_what_does_not(name: str) -> None:
    with pytest.raises(UserError, match=r"no BatchNorm layers.*invert"):
        build("deepinversion", setting(name))


@pytest.mark.parametrize("text", ["smi", "pri", "invert(sparse='pri')"])
def test_dense_inversion_replaces_sparse_where_it_is_impossible(text: str) -> None:
    for given, reason in ((setting(CNN), "plain transformer"), (setting(VIT, size=(30, 32)), "evenly")):
        way = build(text, given)
        assert way.plan.sparsity is None
        assert any(reason in note for note in way.notes)
    assert build(text, setting(VIT)).plan.sparsity is not None


def test_invert_takes_what_each_teacher_can_give() -> None:
    names = {name: {term.name: term for term in Invert(setting(name)).plan.terms} for name in (VIT, CNN, CONVNEXT)}
    assert set(names[VIT]) == {"ce", "heads", "diversity", "tv"}
    assert set(names[CNN]) == {"ce", "diversity", "tv", "bn"}
    assert set(names[CONVNEXT]) == {"ce", "diversity", "tv"}
    assert names[VIT]["diversity"].prior.needs.attention
    assert names[CONVNEXT]["diversity"].prior.needs.request.levels
    shifts = {name: Invert(setting(name)).plan.augmentation.color_mean for name in names}
    assert shifts == {VIT: 1.0, CNN: 0.0, CONVNEXT: 1.0}


def test_stored_moments_are_matched_where_they_are_given(tmp_path: Path) -> None:
    model = teacher(VIT)
    file = tmp_path / "statistics.safetensors"
    save(file, collect(model, [{"image": torch.rand(8, 3, 32, 32), "label": torch.arange(8) % 5}], torch.device("cpu")))
    way = Invert(setting(VIT, statistics=str(file)), iterations=3, class_means=0.5)
    assert {"moments", "class_means"} <= {term.name for term in way.plan.terms}
    assert way.plan.sparsity is None and way.plan.augmentation.color_mean == 0
    assert any("whole maps" in note for note in way.notes)
    assert way.grow(None, 0).images.isfinite().all()
    assert not any("collected at" in note for note in way.notes)
    save(file, dataclasses.replace(load(file), view_size=(16, 16)))
    notes = Invert(setting(VIT, statistics=str(file)), class_means=0.5).notes
    assert sum("collected at 16 pixels" in note and "now reads 32 pixels" in note for note in notes) == 1
    with pytest.raises(UserError, match="limbeck statistics"):
        Invert(setting(VIT), moments=1.0)


def test_a_weight_of_zero_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: Any, **__: Any) -> Prior:
        raise AssertionError("made")

    monkeypatch.setattr("limbeck.synthesis.inversion.invert.HeadSimilarity", made)
    monkeypatch.setattr("limbeck.synthesis.inversion.invert.GaussianDiversity", made)
    way = Invert(setting(VIT), heads=0.0, diversity=0.0)
    assert not any(term.prior.needs.attention for term in way.plan.terms)
    with pytest.raises(UserError, match="weight 0"):
        Invert(setting(VIT), ce=0.0, heads=0.0, diversity=0.0, tv=0.0)


@pytest.mark.parametrize("levels", ["none", "of one position"])
def test_a_teacher_without_maps_is_inverted_without_diversity(levels: str) -> None:
    wrapped = _Large(teacher(CNN), any_size=True)
    one = (Level("pooled", 64, 32, (1, 1)),) if levels == "of one position" else ()
    wrapped.facts = dataclasses.replace(wrapped.inner.facts, levels=one, final=None)
    given = Setting(wrapped, (32, 32), batch_size=4)
    way = Invert(given, iterations=2)
    assert {term.name for term in way.plan.terms} == {"ce", "tv", "bn"}
    assert any("the diversity of patches is left out" in note for note in way.notes)
    assert way.grow(None, 0).images.isfinite().all()
    assert not any("left out" in note and "diversity" in note for note in Invert(given, diversity=0.0).notes)
    with pytest.raises(UserError, match="diversity=0"):
        Invert(given, diversity=1.0)


def test_adaptive_deepinversion_reads_the_student() -> None:
    assert not DeepInversion(setting(CNN)).reads_student
    way = DeepInversion(setting(CNN), adi=0.2, iterations=2)
    assert way.reads_student
    way.grow(teacher(VIT), 0)
    assert 0 <= way.log()["adi"] <= 1


def test_maskaq_reads_the_students_attention() -> None:
    way = MimiQ(setting(VIT), iterations=2, diversity=1.0, student_attention=0.1)
    assert way.reads_student
    way.grow(teacher(VIT), 0)
    assert way.log()["student_attention"] == pytest.approx(0, abs=1e-6)


def test_a_student_without_attention_is_refused_before_any_picture() -> None:
    given = setting(VIT, student=teacher(CNN))
    with pytest.raises(UserError, match=r"student limbeck:resnet8.*student_attention=0"):
        MimiQ(given, student_attention=0.1)
    assert not MimiQ(given).reads_student
    with pytest.raises(UserError, match=r"of the student.*student_attention=0"):
        MimiQ(setting(VIT), iterations=1, student_attention=0.1).grow(teacher(CNN), 0)


class _Large(VisionModel):
    """Facts of a teacher at 224 pixels around a small network."""

    def __init__(self, inner: VisionModel, any_size: bool) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.inner, self.any_size = inner, any_size
        self.facts, self.provenance, self.rebuild = inner.facts, inner.provenance, inner.rebuild

    def read(self, inputs: torch.Tensor, request: Any) -> Any:
        if not self.any_size and inputs.shape[-2:] != self.facts.input_size:
            raise RuntimeError("one size only")
        return self.inner.read(inputs, request)


def test_published_settings_at_the_published_size() -> None:
    large = teacher(CNN, size=224)
    given = Setting(_Large(large, any_size=True), (224, 224))
    plan = DeepInversion(given).plan
    weights = {term.name: term.weight for term in plan.terms}
    assert weights == {"bn": 0.01, "ce": 1.0, "tv": 1e-4, "l2": 1e-5}
    assert [(s.iterations, s.lr, s.warmup, s.pool, s.rolls) for s in plan.stages] == [
        (2000, 0.25, 100, 2, ((15, 15),)),
        (1000, 0.25, 100, 1, ((30, 30),)),
    ]
    single = DeepInversion(Setting(_Large(large, any_size=False), (224, 224)))
    assert [stage.pool for stage in single.plan.stages] == [1]
    assert any("one size only" in note for note in single.notes)
    grown = PlugIn(given).plan
    assert [stage.canvas for stage in grown.stages] == [(28 * k, 28 * k) for k in range(2, 9)]
    assert all(stage.iterations == 400 and stage.lr == pytest.approx(0.04) for stage in grown.stages)
    assert SMI(given).plan.stages[0].rolls == ((28, 28),)


def test_settings_of_small_pictures() -> None:
    plan = DeepInversion(setting(CNN)).plan
    assert {term.name: term.weight for term in plan.terms} == {"bn": 1.0, "ce": 1.0, "tv": 2.5e-5}
    assert [(s.iterations, s.pool, s.rolls) for s in plan.stages] == [(2000, 1, ((2, 2),))]
    psaq = PSAQ(setting(VIT)).plan
    assert [(s.iterations, s.warmup, s.lr) for s in psaq.stages] == [(500, 100, 0.2)] * 2
    assert psaq.augmentation.shared_offset and psaq.augmentation.flip == 0.5
    assert MimiQ(setting(VIT)).plan.stages[0].rolls == ((1, 1), (2, 2))


def test_half_resolution_is_what_the_teacher_sees_first() -> None:
    seen: list[int] = []
    wrapped = _Large(teacher(CNN, size=128), any_size=True)
    wrapped.facts = teacher(CNN, size=128).facts
    way = DeepInversion(Setting(wrapped, (128, 128), batch_size=1), iterations=3, keep="last")
    read = wrapped.inner.read
    wrapped.inner.read = lambda inputs, request: (seen.append(inputs.shape[-1]), read(inputs, request))[1]  # type: ignore[method-assign]
    try:
        assert way.grow(None, 0).images.shape == (1, 3, 128, 128)
    finally:
        del wrapped.inner.read
    assert seen == [64, 64, 128, 128]


@pytest.mark.parametrize(
    "text",
    [
        "invert(iterations=0)",
        "invert(ce=-1.0)",
        "invert(pieces=1)",
        "plugin(ensemble=0)",
        "plugin(first=9)",
        "smi(drop=1.0)",
        "smi(moments=[0.5, 0.2])",
        "pri(pieces=1)",
        "psaq(flip=2.0)",
        "mimiq(lr=0.0)",
    ],
)
def test_impossible_options_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=text.partition("(")[2].partition("=")[0].replace("first", "parts")):
        build(text, setting(VIT))


def test_options_can_be_written_as_text() -> None:
    assert parse_options("(roll=3, classes=[0, 1])", "invert") == {"roll": 3, "classes": [0, 1]}
    way = build("invert(roll=3, classes=[0, 1], color_shift=0)", setting(VIT))
    assert way.plan.stages[0].rolls == ((1, 1), (3, 3))
    assert way.classes == (0, 1)
    assert build("pri(pieces=2)", setting(VIT)).plan.sparsity is not None
    assert isinstance(build("pri", setting(VIT)), PRI)
