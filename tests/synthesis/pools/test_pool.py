"""A pool's scores by a teacher worked out by hand, the crops, the pools that can be opened, and what is said about others."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.decode import BadImageError
from limbeck.errors import UserError
from limbeck.models.attention import reading_attention
from limbeck.synthesis.base import Setting
from limbeck.synthesis.pools.pool import Pool

Fill = Callable[[Path, list[tuple[int, int, int]]], Path]

COLOURS = [(200, 0, 0), (250, 0, 0), (0, 100, 0), (0, 220, 0), (0, 0, 90), (0, 0, 255), (90, 80, 80), (60, 60, 70)]


def made(pool: Pool, count: int, done: int = 0) -> tuple[torch.Tensor, list[str]]:
    batches = list(pool.make(count, done))
    return torch.cat([batch.images for batch in batches]), [name for batch in batches for name in batch.names]


def test_scores_in_closed_form(tmp_path: Path, setting: Setting, fill: Fill) -> None:
    pool = Pool(setting, images=str(fill(tmp_path / "a", COLOURS)))
    scores = pool.score()
    logits = 10 * np.array(COLOURS) / 255
    chance = np.exp(logits).max(1) / np.exp(logits).sum(1)
    np.testing.assert_allclose(scores.confidence, chance, rtol=1e-5)
    np.testing.assert_allclose(scores.score, -np.log(chance), rtol=1e-4, atol=1e-6)
    assert scores.predicted.tolist() == logits.argmax(1).tolist()
    assert any("attention cannot be read" in note for note in pool.notes)


def test_the_surest_are_chosen_balanced_or_not(tmp_path: Path, setting: Setting, fill: Fill) -> None:
    folder = str(fill(tmp_path / "a", COLOURS))
    images, names = made(Pool(setting, images=folder), 3)
    assert names == ["001.png", "003.png", "005.png"]
    torch.testing.assert_close(images[0, :, 4, 4], torch.tensor([250, 0, 0]) / 255)
    pool = Pool(setting, images=folder, balance=False)
    assert made(pool, 3)[1] == ["001.png", "003.png", "005.png"]
    fill(tmp_path / "a", [(255, 0, 0), (254, 0, 0), *COLOURS[2:]])
    assert made(Pool(setting, images=folder, balance=False), 3)[1] == ["000.png", "001.png", "005.png"]
    assert made(Pool(setting, images=folder), 3)[1] == ["000.png", "003.png", "005.png"]
    assert made(Pool(setting, images=folder, selection="none"), 3)[1] == ["000.png", "004.png", "007.png"]
    assert pool.record["chosen_class_counts"] == [1, 1, 1]
    assert pool.record["pool_class_counts"] == [3, 2, 3]
    assert pool.record["confidence"]["chosen"] > pool.record["confidence"]["pool"]
    assert any("3 of 8 images" in note and "3 of 3 classes" in note for note in pool.notes)


def test_the_choice_and_the_pictures_do_not_depend_on_the_batch_size(
    tmp_path: Path, setting: Setting, fill: Fill
) -> None:
    folder = str(fill(tmp_path / "a", COLOURS))
    images, names = made(Pool(setting, images=folder, crops=3), 17)
    others, same_names = made(Pool(replace(setting, batch_size=5), images=folder, crops=3), 17)
    assert names == same_names and torch.equal(images, others)
    rest, rest_names = made(Pool(setting, images=folder, crops=3), 17, done=8)
    assert rest_names == names[8:] and torch.equal(rest, images[8:])


def test_further_pictures_are_random_crops_of_the_chosen_images(tmp_path: Path, setting: Setting) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    folder = tmp_path / "a"
    folder.mkdir()
    Image.fromarray(np.stack([np.tile(ramp, (48, 1))] * 3, 2)).save(folder / "ramp.png")
    pool = Pool(setting, images=str(folder), crops=4)
    images, names = made(pool, 6)
    assert names == ["ramp.png"] * 4
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4
    widths = (images[:, :, :, -1] - images[:, :, :, 0]).mean((1, 2))
    assert (widths[1:] < widths[0]).all() and (widths[1:] > 0).all()
    assert any("4 pictures instead of 6" in note for note in pool.notes)
    other = made(Pool(replace(setting, seed=4), images=str(folder), crops=4), 6)[0]
    assert torch.equal(other[0], images[0]) and not torch.equal(other[1], images[1])


def test_keep_leaves_the_rest_of_the_pool_out(tmp_path: Path, setting: Setting, fill: Fill) -> None:
    folder = str(fill(tmp_path / "a", COLOURS))
    assert len(made(Pool(setting, images=folder, keep=0.5), 100)[1]) == 4
    assert any("keep=0.5" in note for note in _noted(Pool(setting, images=folder), 100))
    for wrong in ({"keep": 0.0}, {"keep": 1.5}, {"crops": 0}, {"crop_scale": (0.5, 0.2)}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Pool(setting, images=folder, **wrong)


def test_attention_probe_reads_the_class_tokens_first_head(tmp_path: Path, attentive_setting: Setting) -> None:
    random = np.random.default_rng(0)
    folder = tmp_path / "a"
    folder.mkdir()
    for number in range(7):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    teacher = attentive_setting.teacher
    pool = Pool(attentive_setting, images=str(folder))
    assert pool.blocks == (0, 1)
    scores = pool.score()
    images, _ = made(Pool(attentive_setting, images=str(folder), selection="none"), 7)
    with torch.no_grad(), reading_attention(teacher) as read:
        chances = teacher(images).logits.softmax(1)
        rows = [block.scores().softmax(-1)[:, :, 0, 1:] for block in read]
    flat = torch.stack([row[:, 0].sum(1) / (row[:, 0].norm(dim=1) * math.sqrt(row.shape[2])) for row in rows])
    assert flat.std() > 0.02
    unsure = -chances.amax(1).log()
    np.testing.assert_allclose(scores.score, (0.9 * unsure + 0.05 * flat.sum(0)).numpy(), rtol=1e-5)
    plain = Pool(attentive_setting, images=str(folder), selection="confidence").score()
    np.testing.assert_allclose(plain.score, unsure.numpy(), rtol=1e-5)
    # Of all heads: each one's row over the patches sums to one before the mean is taken.
    mean = Pool(attentive_setting, images=str(folder), heads="mean", blocks=(1, 1)).score()
    row = (rows[1] / rows[1].sum(2, keepdim=True)).mean(1)
    flat = row.sum(1) / (row.norm(dim=1) * math.sqrt(row.shape[1]))
    np.testing.assert_allclose(mean.score, (0.9 * unsure + 0.1 * flat).numpy(), rtol=1e-5)
    with pytest.raises(UserError, match="2 blocks, counted from 0 to 1"):
        Pool(attentive_setting, images=str(folder), blocks=(3, 7))


def test_a_teacher_of_one_class_is_told_of_and_the_images_are_taken_evenly(
    tmp_path: Path, one_class_setting: Setting, fill: Fill
) -> None:
    pool = Pool(one_class_setting, images=str(fill(tmp_path / "a", COLOURS)))
    assert made(pool, 3)[1] == ["000.png", "004.png", "007.png"]
    assert any("one class" in note for note in pool.notes)


def test_an_answer_that_is_not_finite_stops(tmp_path: Path, setting: Setting, fill: Fill) -> None:
    pool = Pool(setting, images=str(fill(tmp_path / "a", COLOURS)))
    setting.teacher.mean.fill_(torch.nan)
    with pytest.raises(UserError, match=r"not finite, the first of them 000\.png"):
        list(pool.make(3))


def test_bad_images_stop_or_are_skipped_and_counted(tmp_path: Path, setting: Setting, fill: Fill) -> None:
    folder = fill(tmp_path / "a", COLOURS)
    (folder / "002.png").write_bytes((folder / "002.png").read_bytes()[:40])
    with pytest.raises(BadImageError, match=r"002\.png.*bad_images=skip"):
        list(Pool(setting, images=str(folder)).make(3))
    pool = Pool(setting, images=str(folder), bad_images="skip")
    assert "002.png" not in made(pool, 100)[1]
    assert any("1 images" in note and "002.png" in note for note in pool.notes)
    for file in folder.iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="Not one of 8 images"):
        Pool(setting, images=str(folder), bad_images="skip")


def test_any_data_is_a_pool_but_never_what_it_is_measured_on(tmp_path: Path, setting: Setting, fill: Fill) -> None:
    for part in ("train/x", "train/y", "val/x", "val/y"):
        fill(tmp_path / "split" / part, COLOURS[:2])
    pool = Pool(setting, images=str(tmp_path / "split"), selection="none")
    assert made(pool, 100)[1] == ["x/000.png", "x/001.png", "y/000.png", "y/001.png"]
    assert any("only train/" in note for note in pool.notes)
    fill(tmp_path / "mixed", COLOURS[:1])
    fill(tmp_path / "mixed" / "deep" / "er", COLOURS[:2])
    assert len(Pool(setting, images=str(tmp_path / "mixed")).images) == 3
    arrays = {"train_x": np.zeros((5, 8, 8, 3), np.uint8), "test_x": np.zeros((2, 8, 8, 3), np.uint8)}
    np.savez(tmp_path / "a.npz", **arrays, train_y=np.arange(5), test_y=np.arange(2))
    assert len(Pool(setting, images=str(tmp_path / "a.npz")).images) == 5
    assert len(Pool(setting, images="digits").images) == 1797


def test_wrong_pools_are_refused_in_words(tmp_path: Path, setting: Setting) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    for name, expected in (
        ("gone", "does not exist"),
        ("empty", "hold no images"),
        ("a.txt", "neither .npz nor .parquet"),
        ("one.png", "single image.*one_image"),
    ):
        with pytest.raises(UserError, match=expected) as error:
            Pool(setting, images=str(tmp_path / name))
        assert re.search(re.escape(str(tmp_path / name)), str(error.value))


def _noted(pool: Pool, count: int) -> list[str]:
    list(pool.make(count))
    return pool.notes
