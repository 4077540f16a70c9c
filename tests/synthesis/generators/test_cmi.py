"""CMI: fresh generators, and what is kept between them."""

from typing import Any

import torch

from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.cmi import CMI


def small(setting: Setting, **options: Any) -> CMI:
    return CMI(setting, **{"latent": 8, "channels": 4, "g_steps": 2, "head": 8, "bank_size": 20, "adv": 0.0, **options})


def test_the_bank_holds_the_channel_means_of_the_newest_pictures(setting: Setting) -> None:
    way = small(setting)
    made = [way.grow(None, round).images for round in range(3)]
    assert len(way.bank) == 20
    seen = setting.teacher.body(setting.teacher.prepare(made[-1])).mean((2, 3))
    newest = torch.cat([way.bank.rows[16:], way.bank.rows[:4]])
    torch.testing.assert_close(newest, seen)


def test_the_head_learns_and_the_batches_generator_is_forgotten(setting: Setting) -> None:
    way = small(setting)
    before = [parameter.clone() for parameter in way.networks["head"].parameters()]
    way.grow(None, 0)
    assert all(not torch.equal(a, b) for a, b in zip(before, way.networks["head"].parameters(), strict=True))
    assert set(way.networks) == {"head"}


def test_without_contrast_rounds_do_not_depend_on_each_other(setting: Setting) -> None:
    way = small(setting, cr=0.0)
    way.grow(None, 0)
    assert torch.equal(way.grow(None, 5).images, small(setting, cr=0.0).grow(None, 5).images)
    assert "contrast" not in way.log() and len(way.bank) == 0


def test_earlier_pictures_are_negatives(setting: Setting) -> None:
    way, fresh = small(setting), small(setting)
    way.grow(None, 0)
    for one in (way, fresh):
        one.grow(None, 1)
    # 8 of the batch and 8 earlier ones against the 8 of the batch alone.
    assert way.log()["contrast"] > fresh.log()["contrast"]


def test_several_levels_of_a_network_are_contrasted(resnet_setting: Setting) -> None:
    way = small(resnet_setting)
    way.grow(None, 0)
    assert way.bank.rows.shape == (6, sum(level.channels for level in resnet_setting.teacher.facts.levels))
