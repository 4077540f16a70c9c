"""NAYER: what is drawn anew, when, and what learns."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from limbeck.errors import UserError
from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.nayer import NAYER


def small(setting: Setting, **options: Any) -> NAYER:
    return NAYER(setting, **{"latent": 8, "channels": 4, "g_steps": 2, "adv": 0.0, "warmup_rounds": 0, **options})


def test_the_noise_is_drawn_anew_for_each_batch_and_stays_within_it(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = small(setting, loops=3, g_steps=4)
    drawn: list[torch.Tensor] = []
    descend = way.descend

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        before = way.networks["noise"].weight.clone()
        made = descend(*arguments, **options)
        assert torch.equal(before, way.networks["noise"].weight)
        drawn.append(before)
        return made

    monkeypatch.setattr(way, "descend", watched)
    way.grow(None, 0)
    assert len(drawn) == 3
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_the_norm_before_the_noise_learns(setting: Setting) -> None:
    way = small(setting)
    way.grow(None, 0)
    assert not torch.equal(way.networks["noise"].norm.weight, torch.ones(8))


def test_warm_up_rounds_have_more_batches(setting: Setting) -> None:
    way = small(setting, loops=2, warmup_loops=3, warmup_rounds=1)
    assert [len(way.grow(None, round)) for round in range(3)] == [24, 16, 16]
    # Beforehand there is nobody to warm up for.
    assert [len(made) for made in way.make(24)] == [16, 8]


def test_the_generator_starts_anew_after_its_rounds(setting: Setting) -> None:
    way = small(setting, generator_rounds=2)
    for round in range(2):
        way.grow(None, round)
    fresh = small(setting, generator_rounds=2, bn_momentum=0.0)
    learned = small(setting, generator_rounds=2, bn_momentum=0.0)
    for round in range(2):
        learned.grow(None, round)
    # Nothing of the first two rounds remains; in the second, something did.
    assert torch.equal(fresh.grow(None, 2).images, learned.grow(None, 2).images)
    another = small(setting, generator_rounds=3, bn_momentum=0.0)
    assert not torch.equal(another.grow(None, 1).images, small(setting, bn_momentum=0.0).grow(None, 2).images)


def test_no_two_pictures_of_a_batch_begin_alike(setting: Setting) -> None:
    # Ten pictures of four classes: groups of 4, 4 and 2.
    way = small(replace(setting, batch_size=10))
    made = way.grow(None, 0)
    assert made.asked is not None
    for batch in made.asked.split(10):
        for group in batch.split(4):
            assert len(set(group.tolist())) == len(group)
    flat = made.images.flatten(1)
    distances = torch.cdist(flat, flat) + torch.eye(len(flat)) * 9
    assert distances.min() > 1e-3


def test_batches_without_two_classes_are_refused(setting: Setting) -> None:
    with pytest.raises(UserError, match="batch_size is 1"):
        small(replace(setting, batch_size=1))
