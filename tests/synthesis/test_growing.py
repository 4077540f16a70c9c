"""A pool that grows: which pictures an epoch sees, and that a stop changes nothing."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.base import DataSet
from limbeck.data.options import ViewOptions
from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.synthesis.base import GrownSynthesis, Made, Setting
from limbeck.synthesis.growing import PoolSampler, PoolSource, make_growing_loader, teacher_labels

PLAIN = ViewOptions(crop="none", flip=0.0)


class Shades(GrownSynthesis):
    """Each round three pictures of one shade, and what it was asked with."""

    warmup_rounds = 1

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.rounds = 0
        self.students: list[VisionModel | None] = []

    def grow(self, student: VisionModel | None, round: int) -> Made:
        assert round == self.rounds
        self.rounds += 1
        self.students.append(student)
        return Made(torch.full((3, 3, 16, 16), (round + 1) / 10), torch.zeros(3, dtype=torch.long))

    def state_dict(self) -> dict[str, Any]:
        return {"rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rounds = state["rounds"]


def make(setting: Setting, folder: Path, **changes: Any):
    source = PoolSource()
    data = DataSet("none", source, None, None, (16, 16))
    values = {"before": None, "share_before": 0.0, "length": 12, "batch_size": 4, "seed": 1} | changes
    return make_growing_loader(
        Shades(setting), data, PLAIN, 16, student=setting.teacher, folder=folder, say=lambda text: None, **values
    )


def shades(loader: Any) -> list[list[int]]:
    return [[round(float(image.mean()) * 10) for image in batch["image"]] for batch in loader]


def test_each_epoch_adds_a_round_and_draws_from_all(resnet_setting: Setting, tmp_path: Path) -> None:
    loader = make(resnet_setting, tmp_path)
    seen = shades(loader)
    assert [len(batch) for batch in seen] == [4, 4, 4]
    # A warm-up round and the epoch's own, each picture twice.
    assert sorted(itertools.chain(*seen)) == [1] * 6 + [2] * 6
    loader.set_epoch(1)
    assert 3 <= list(itertools.chain(*shades(loader))).count(3) <= 6
    assert loader.pool.synthesis.students == [None, resnet_setting.teacher, resnet_setting.teacher]


def test_going_through_an_epoch_twice_adds_nothing(resnet_setting: Setting, tmp_path: Path) -> None:
    loader = make(resnet_setting, tmp_path)
    assert shades(loader) == shades(loader)
    assert loader.pool.rounds == 2


def test_a_stopped_run_goes_on_with_the_same_batches(resnet_setting: Setting, tmp_path: Path) -> None:
    whole = make(resnet_setting, tmp_path / "whole")
    expected = [shades(whole)]
    whole.set_epoch(1)
    expected.append(shades(whole))
    stopped = make(resnet_setting, tmp_path / "stopped")
    first = shades(stopped)
    stopped.batches_done = 2
    again = make(resnet_setting, tmp_path / "stopped")
    again.pool.load_state_dict(stopped.pool.state_dict())
    again.load_state_dict(stopped.state_dict())
    assert first[:2] + shades(again) == expected[0]
    again.set_epoch(1)
    assert shades(again) == expected[1]
    assert again.pool.synthesis.students == [resnet_setting.teacher]  # earlier rounds were read, not made again


def test_a_round_that_was_deleted_is_missed(resnet_setting: Setting, tmp_path: Path) -> None:
    loader = make(resnet_setting, tmp_path)
    shades(loader)
    state = loader.pool.state_dict()
    (tmp_path / "round_00001.npz").unlink()
    with pytest.raises(UserError, match="round_00001"):
        make(resnet_setting, tmp_path).pool.load_state_dict(state)


def test_pictures_made_before_keep_their_share_of_every_batch(resnet_setting: Setting, tmp_path: Path) -> None:
    before = PoolSource()
    before.add(np.full((5, 16, 16, 3), 255, np.uint8), np.zeros(5, np.int64))
    loader = make(resnet_setting, tmp_path, before=before, share_before=0.5, length=16, batch_size=4)
    for batch in shades(loader):
        assert 1 <= sum(shade == 10 for shade in batch) <= 3
    assert sum(shade == 10 for batch in shades(loader) for shade in batch) == 8


def test_an_epoch_draws_each_picture_about_equally_often() -> None:
    source = PoolSource()
    source.add(np.zeros((7, 2, 2, 3), np.uint8), np.zeros(7, np.int64))
    counts = np.bincount(list(PoolSampler(source, 24, seed=0, batch_size=8)._order()), minlength=7)
    assert counts.sum() == 24
    assert set(counts) <= {3, 4}


def test_the_labels_are_the_teachers(resnet_setting: Setting) -> None:
    images = torch.rand(9, 3, 16, 16)
    with torch.no_grad():
        expected = resnet_setting.teacher(images).logits.argmax(1)
    assert torch.equal(teacher_labels(resnet_setting.teacher, images, batch_size=4), expected)
