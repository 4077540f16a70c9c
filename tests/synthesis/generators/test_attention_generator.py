"""The attention generator: closed forms of its own term, which terms its options ask for, and what it falls back to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.attention import Attention
from limbeck.models.base import VisionModel
from limbeck.models.door import load_model
from limbeck.outputs import ModelFacts
from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.attention import AttentionGenerator, attention_peakedness
from limbeck.synthesis.generators.networks import AttentionGeneratorNetwork, ConvGenerator

SMALL: dict[str, Any] = {"latent": 6, "channels": 4, "generator_steps": 2}
DEPTH = 2
VIT = f"timm:vit_tiny_patch16_224(embed_dim=24, depth={DEPTH}, num_heads=3, patch_size=4)"


@pytest.fixture
def vit() -> Setting:
    """A random transformer of four classes, with weights that make its attention depend on the picture."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = load_model(VIT, num_classes=4, pretrained=False, input_size=(16, 16))
        for parameter in teacher.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
    return Setting(teacher, (16, 16), batch_size=8, seed=3)


def attention(query: torch.Tensor, key: torch.Tensor, prefix: int) -> Attention:
    return Attention(query, key, torch.zeros_like(key), 1.0, prefix, None)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_peakedness_runs_from_none_to_all(prefix: int) -> None:
    query, key = torch.zeros(2, 3, prefix + 9, 4), torch.randn(2, 3, prefix + 9, 4)
    assert attention_peakedness(attention(query, key, prefix)).item() == pytest.approx(0, abs=1e-6)
    # Every query finds one patch, and no other token.
    query[..., 0], key[..., 0] = 1.0, -1e3
    key[:, :, prefix + 4, 0] = 1e3
    assert attention_peakedness(attention(query, key, prefix)).item() == pytest.approx(1)


def test_peakedness_of_two_patches_of_four() -> None:
    query, key = torch.ones(1, 1, 5, 1), torch.tensor([7.0, 100.0, 100.0, 0.0, 0.0]).view(1, 1, 5, 1)
    assert attention_peakedness(attention(query, key, 1)).item() == pytest.approx(0.5)


def test_peakedness_has_finite_gradients_where_it_is_complete() -> None:
    query, key = torch.ones(1, 1, 5, 1), torch.tensor([0.0, 900.0, 0.0, 0.0, 0.0]).view(1, 1, 5, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(attention_peakedness(attention(query, key, 1)), key)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({}, {"one_hot", "balance", "disagreement", "peakedness", "diversity"}),
        ({"adversary": "dafl"}, {"one_hot", "balance", "peakedness", "diversity"}),
        ({"adversary": "disagreement"}, {"disagreement", "peakedness", "diversity"}),
        ({"attention": 0.0, "activation": 0.1}, {"one_hot", "balance", "activation", "disagreement"}),
        ({"peakedness": 0.0, "one_hot": 0.0}, {"balance", "disagreement", "diversity"}),
        ({"diversity": 0.0}, {"one_hot", "balance", "disagreement", "peakedness"}),
    ],
)
def test_options_choose_the_terms(vit: Setting, student: VisionModel, options: dict[str, Any], terms: set[str]) -> None:
    method = AttentionGenerator(vit, **SMALL, **options)
    assert set(method.weights) == terms and not method.notes
    method.learn(student)
    assert terms <= set(method.log())
    assert "activation" in terms or "activation" not in method.log()


def test_terms_of_attention_are_weighted_together(vit: Setting) -> None:
    method = AttentionGenerator(vit, **SMALL, attention=0.5, peakedness=2.0, diversity=3.0)
    assert method.weights == {
        "peakedness": -1.0,
        "diversity": 1.5,
        "one_hot": 0.5,
        "balance": 10.0,
        "disagreement": -1.0,
    }


def test_disagreement_counts_where_both_name_one_class(vit: Setting, student: VisionModel) -> None:
    method = AttentionGenerator(vit, **SMALL)
    images = torch.rand(8, 3, 16, 16)
    student.eval()
    teacher_logits, student_logits = vit.teacher(images).logits.detach(), student(images).logits.detach()
    by_hand = [
        torch.nn.functional.kl_div(s.log_softmax(0), t.softmax(0), reduction="sum").item()
        for s, t in zip(student_logits, teacher_logits, strict=True)
        if s.argmax() == t.argmax()
    ]
    assert 0 < len(by_hand) < 8
    assert method.terms(images, student)["disagreement"].item() == pytest.approx(sum(by_hand) / 8, rel=1e-4)


def test_without_a_student_it_is_the_same_as_without_disagreement(vit: Setting) -> None:
    alone, dafl = AttentionGenerator(vit, **SMALL), AttentionGenerator(vit, **SMALL, adversary="dafl")
    for method in (alone, dafl):
        torch.manual_seed(0)
        method.learn(None)
    assert "disagreement" not in alone.log()
    assert all(map(torch.equal, alone.network.state_dict().values(), dafl.network.state_dict().values()))


def test_a_finished_student_is_taken_into_account(vit: Setting, student: VisionModel) -> None:
    against_it = dataclasses.replace(vit, student=student)
    alone, beside = (next(iter(AttentionGenerator(given, **SMALL).make(8))).images for given in (vit, against_it))
    assert not torch.equal(alone, beside)


@pytest.mark.parametrize("generator", ["attention", "conv"])
def test_attention_becomes_peaked(vit: Setting, generator: Any) -> None:
    method = AttentionGenerator(
        vit, **SMALL, generator=generator, one_hot=0.0, balance=0.0, diversity=0.0, adversary="dafl", lr=3e-3
    )
    assert isinstance(method.network, AttentionGeneratorNetwork if generator == "attention" else ConvGenerator)
    seen = []
    for step in range(30):
        torch.manual_seed(step)
        method.learn(None)
        seen.append(method.log()["peakedness"])
    assert 0 < seen[0] < seen[-1] < DEPTH
    assert sum(seen[-5:]) > 1.1 * sum(seen[:5])


def test_a_transformer_is_left_as_it_was(
    vit: Setting, student: VisionModel, snapshot: Callable[[nn.Module], list[object]]
) -> None:
    before = snapshot(vit.teacher), snapshot(student)
    method = AttentionGenerator(vit, **SMALL, exchange=0.2)
    method.learn(student)
    assert (snapshot(vit.teacher), snapshot(student)) == before


def test_gradients_reach_every_parameter_through_the_attention_alone(vit: Setting) -> None:
    method = AttentionGenerator(vit, **SMALL, adversary="dafl", one_hot=0.0, balance=0.0)
    torch.manual_seed(0)
    terms = method.terms(method.network(torch.randn(8, 6)), None)
    loss = method.weights["peakedness"] * terms["peakedness"] + method.weights["diversity"] * terms["diversity"]
    for gradient in torch.autograd.grad(loss, list(method.network.parameters())):
        assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_a_teacher_without_attention_falls_back_to_its_maps(setting: Setting) -> None:
    method = AttentionGenerator(setting, **SMALL)
    assert set(method.weights) == {"one_hot", "balance", "disagreement", "diversity"}
    assert "none is made peaked" in method.notes[0] and "feature maps" in method.notes[1]


def test_a_teacher_with_neither_is_left_its_answers(setting: Setting) -> None:
    setting.teacher.facts = ModelFacts("tiny", 4, (16, 16), (), 8)
    method = AttentionGenerator(setting, **SMALL)
    assert set(method.weights) == {"one_hot", "balance", "disagreement"}
    assert len(method.notes) == 2
    method.learn(None)


def test_both_kinds_of_network_are_built_as_asked(vit: Setting) -> None:
    setting = dataclasses.replace(vit, size=(32, 32))
    method = AttentionGenerator(setting, latent=6, channels=8, depth=3, heads=2, exchange=0.3)
    assert isinstance(method.network, AttentionGeneratorNetwork) and len(method.network.transformer) == 3
    assert method.draw(2).shape == (2, 3, 32, 32)
    with pytest.raises(UserError, match="heads must divide"):
        AttentionGenerator(setting, **SMALL, heads=3)
