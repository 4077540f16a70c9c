"""Patches that show the photograph and nothing else, whatever their turn, and what is said about wrong photographs."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.errors import UserError
from limbeck.synthesis.base import Setting
from limbeck.synthesis.pools.one_image import OneImage, inverse_turn, random_box, turned_crop


@pytest.fixture
def photograph(tmp_path: Path) -> str:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((400, 300), Image.Resampling.BILINEAR).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def made(way: OneImage, count: int, done: int = 0) -> torch.Tensor:
    return torch.cat([batch.images for batch in way.make(count, done)])


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (64, 64), (24, 40)])
def test_patches_have_the_size_and_depend_on_their_number_alone(
    setting: Setting, photograph: str, size: tuple[int, int]
) -> None:
    setting = replace(setting, size=size)
    way = OneImage(setting, image=photograph)
    images = made(way, 10)
    assert images.shape == (10, 3, *size)
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
    assert torch.equal(made(way, 10, done=4), images[4:])
    assert torch.equal(made(OneImage(replace(setting, batch_size=3), image=photograph), 10), images)
    assert not torch.equal(made(OneImage(replace(setting, seed=4), image=photograph), 10), images)
    assert len({image.mean().item() for image in images}) == 10
    assert next(iter(way.make(1))).names == ["photo.png"]


@pytest.mark.parametrize(("degrees", "shear"), [(30, 30), (180, 0), (0, 45), (180, 45)])
def test_patches_never_leave_the_photograph(tmp_path: Path, setting: Setting, degrees: float, shear: float) -> None:
    Image.new("RGB", (300, 200), "white").save(tmp_path / "white.png")
    for size in ((32, 32), (20, 44)):
        way = OneImage(
            replace(setting, size=size),
            image=str(tmp_path / "white.png"),
            degrees=degrees,
            shear=shear,
            jitter_chance=0.0,
        )
        assert (made(way, 40) == 1).all()
    # Brightness turns white into one grey; nothing of it is black or uneven.
    way = OneImage(replace(setting, size=(32, 32)), image=str(tmp_path / "white.png"), jitter_chance=1.0)
    images = made(way, 20)
    assert (images.amax((1, 2, 3)) - images.amin((1, 2, 3))).max() == 0
    assert images.min() >= 0.6 - 1e-2
    assert any("almost of one colour" in note for note in way.notes)


def test_a_patch_shows_what_its_turn_says() -> None:
    # Red grows to the right and green downwards, so every pixel tells the place that it shows.
    y, x = np.mgrid[0:200, 0:200].astype(np.float32)
    image = Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8))
    for angle, shear, flip in ((0.0, 0.0, False), (0.0, 0.0, True), (0.5, 0.0, False), (0.4, -0.5, True)):
        shown = np.asarray(turned_crop(image, (20, 40, 180, 160), (33, 41), angle, shear, flip)).astype(np.float64)
        turn = inverse_turn(angle, shear, flip)
        larger = max(math.sqrt(2), float((np.abs(turn) @ [20.5, 16.5] / [20.5, 16.5]).max()))
        # The crop has this many pixels, some of them for interpolation, and is as large as the box.
        sides = np.ceil([larger * 41, larger * 33]) + 2
        rows, columns = np.mgrid[-16:17, -20:21]
        there = np.einsum("ij,jhw->hwi", turn, np.stack([columns, rows])) * ([160, 120] / sides) + [100, 100]
        # A pixel's colour is the place of its left upper corner.
        np.testing.assert_allclose(shown[..., :2], there - 0.5, atol=1.5)


def test_boxes_lie_in_the_photograph_and_have_the_published_areas() -> None:
    random = np.random.default_rng(0)
    boxes = np.array([random_box(random, (300, 200), 0.5, (0.1, 0.6), (32, 32)) for _ in range(2000)])
    assert (boxes >= 0).all() and (boxes[:, 2] <= 300 + 1e-9).all() and (boxes[:, 3] <= 200 + 1e-9).all()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, aspects = width * height / 100**2, width / height
    assert areas.min() >= 0.1 and areas.max() <= 0.6
    assert abs(areas.mean() - 0.35) < 0.01
    assert aspects.min() >= 3 / 4 and aspects.max() <= 4 / 3
    assert random_box(random, (100, 100), 1.0, (1.0, 1.0), (32, 32)) == pytest.approx((0, 0, 100, 100), abs=14)


def test_several_photographs_take_turns(tmp_path: Path, setting: Setting) -> None:
    files = []
    for name in ("red", "blue"):
        Image.new("RGB", (100, 100), name).save(tmp_path / f"{name}.png")
        files.append(str(tmp_path / f"{name}.png"))
    (batch,) = OneImage(setting, image=files, jitter_chance=0.0).make(4)
    assert batch.names == ["red.png", "blue.png", "red.png", "blue.png"]
    assert batch.images[:, 0].mean((1, 2)).tolist() == [1, 0, 1, 0]


def test_small_students_are_warned_of(setting: Setting, photograph: str) -> None:
    assert any("34.6 %" in note for note in OneImage(setting, image=photograph).notes)


def test_wrong_photographs_are_refused_in_words(tmp_path: Path, setting: Setting, photograph: str) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", (400, 90)).save(tmp_path / "small.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg does not exist"):
        OneImage(setting, image=str(tmp_path / "gone.jpg"))
    with pytest.raises(UserError, match=r"is a folder.*pool"):
        OneImage(setting, image=str(tmp_path))
    with pytest.raises(UserError, match=r"text\.jpg cannot be read as an image: its content is not an image") as error:
        OneImage(setting, image=str(tmp_path / "text.jpg"))
    assert "bad-images" not in str(error.value)
    with pytest.raises(UserError, match=r"shorter side is 90 pixels \(400 x 90\).* 32 x 32 need at least 91"):
        OneImage(replace(setting, size=(32, 32)), image=str(tmp_path / "small.png"))
    with pytest.raises(UserError, match="needs an image"):
        OneImage(setting, image=[])
    for wrong in ({"first_crop": 0.0}, {"scale": (0.0, 1.0)}, {"degrees": 200.0}, {"shear": 90.0}, {"flip": 2.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            OneImage(setting, image=photograph, **wrong)
    with pytest.raises(UserError, match="jitter is"):
        OneImage(setting, image=photograph, jitter=(0.4, 0.4, 0.4, 0.9))
