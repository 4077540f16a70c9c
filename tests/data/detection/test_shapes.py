"""The drawn scenes: exact, reproducible, visible."""

import pickle

import numpy as np
import pytest

from limbeck.data.detection.door import open_scenes
from limbeck.data.detection.shapes import VISIBLE, ShapesSource, lay_out
from limbeck.errors import UserError


def test_boxes_are_the_smallest_around_masks_that_share_no_pixel() -> None:
    scenes = open_scenes("shapes(train=30, val=5, size=64)")
    assert (len(scenes.train), len(scenes.val), scenes.has_masks, scenes.native_size) == (30, 5, True, (64, 64))
    seen = set()
    for index in range(30):
        objects = scenes.train.objects(index)
        masks = objects.masks(64, 64)
        assert masks is not None
        assert masks.sum(axis=0).max() <= 1
        assert 1 <= len(objects) <= 6
        for mask, box, area in zip(masks, objects.boxes, objects.area, strict=True):
            x1, y1, x2, y2 = box.astype(int)
            assert mask.sum() == mask[y1:y2, x1:x2].sum() == area > 0
            assert all(side.any() for side in (mask[y1], mask[y2 - 1], mask[:, x1], mask[:, x2 - 1]))
        seen |= set(objects.labels.tolist())
    assert seen == set(range(len(scenes.class_names)))


def test_enough_of_every_shape_can_be_seen() -> None:
    covered = 0
    for number in range(60):
        placed, masks = lay_out(0, 0, number, 64)
        for shape, mask in zip(placed, masks, strict=True):
            whole = (shape.cover >= 0.5).sum()
            assert VISIBLE * whole <= mask.sum() <= whole
            covered += mask.sum() < whole
    assert covered > 10, "overlaps do occur"


A = np.sin(2 * np.pi * 0.0545)  # half the width of a cross's bars


@pytest.mark.parametrize(
    ("label", "area_of_unit"),
    [
        (0, np.pi),
        (1, 2.0),
        (2, 3 * np.sqrt(3) / 4),
        (3, 10 * 0.5 * 0.45 * np.sin(np.pi / 5)),
        (4, 8 * A * np.sqrt(1 - A**2) - 4 * A**2),
    ],
)
def test_the_area_of_a_shape_is_that_of_geometry(label: int, area_of_unit: float) -> None:
    from limbeck.data.detection.shapes import CLASS_NAMES, _cover

    _, cover = _cover(CLASS_NAMES[label], np.array([128.0, 128.0]), 100.0, 0.137, 256)
    assert cover.sum() == pytest.approx(area_of_unit * 100**2, rel=0.003)


def test_a_scene_depends_on_seed_split_and_number_alone() -> None:
    few, many = open_scenes("shapes(train=3, val=2, size=64)"), open_scenes("shapes(train=9, val=9, size=64)")
    for index in range(2):
        for a, b in ((few.train, many.train), (few.val, many.val)):
            assert (np.asarray(a.read(index)) == np.asarray(b.read(index))).all()
            assert (a.objects(index).boxes == b.objects(index).boxes).all()
    other = open_scenes("shapes(train=3, val=2, size=64, seed=1)")
    first = [np.asarray(source.read(0)) for source in (few.train, few.val, other.train)]
    assert not (first[0] == first[1]).all()
    assert not (first[0] == first[2]).all()


def test_the_first_scene_is_known() -> None:
    source = ShapesSource("train", 400, 128, 0)
    objects = source.objects(0)
    assert [source.class_names[label] for label in objects.labels] == ["star", "square"]
    assert (len(source), source.size(0), source.describe(0)) == (400, (128, 128), "shapes train[0]")


def test_shapes_contrast_with_what_is_around_them() -> None:
    source = open_scenes("shapes(train=20, val=1)").train
    for index in range(20):
        image = np.asarray(source.read(index)).astype(float)
        masks = source.objects(index).masks(128, 128)
        assert masks is not None
        ground = image[~masks.any(axis=0)].mean(axis=0)
        assert all(np.abs(image[mask].mean(axis=0) - ground).max() > 30 for mask in masks)


def test_the_source_is_small_when_sent_to_workers() -> None:
    source = open_scenes("shapes(train=100, val=1)").train
    assert len(pickle.dumps(source)) < 1000
    assert (pickle.loads(pickle.dumps(source)).objects(7).boxes == source.objects(7).boxes).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shapes(size=8)", "32 to 1024"),
        ("shapes(train=0)", "1 to"),
        ("shapes(train=2.5)", "whole number"),
        ("shapes(colour=red)", "no option colour"),
        ("shapes(train=2", "not closed"),
        ("shapes(train=2)x", "after its options"),
    ],
)
def test_wrong_options_are_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_scenes(name)
