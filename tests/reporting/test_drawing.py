"""Drawn objects stand where they are, in their class's colour, and no tag hides another."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from limbeck.data.detection.masks import encode_rle
from limbeck.reporting.detection.sheet import THUMB, detection_sheet, sheet_item
from limbeck.reporting.drawing import MASK_OPACITY, _tag, class_colour, draw_detections, draw_objects
from limbeck.tasks.detection_scores import Detections

GREY = (90, 90, 90)
NAMES = ("cat", "dog", "cow")


def grey(width=240, height=160):
    return Image.new("RGB", (width, height), GREY)


def one(box, label=0, score=0.5, masks=None):
    return Detections(np.array([box], dtype=float), np.array([score]), np.array([label]), masks)


def test_the_outline_lies_on_the_box_in_the_classs_colour():
    image = grey()
    drawn = draw_objects(image, np.array([[60, 50, 180, 130]]), np.array([1]), NAMES, captions=[""], side=240)
    pixels = np.asarray(drawn)
    for x, y in ((60, 90), (179, 90), (120, 50), (120, 129), (61, 90), (178, 90)):
        assert tuple(pixels[y, x]) == class_colour(1)
    for x, y in ((120, 90), (20, 20), (200, 140), (64, 90)):
        assert tuple(pixels[y, x]) == GREY
    assert np.array_equal(np.asarray(image), np.asarray(grey())), "the given picture stays as it was"


def test_small_pictures_are_enlarged_with_what_is_on_them():
    drawn = np.asarray(draw_objects(grey(60, 40), np.array([[15, 10, 45, 30]]), np.array([2]), NAMES, side=240))
    assert drawn.shape == (160, 240, 3)
    assert tuple(drawn[80, 60]) == class_colour(2)
    assert tuple(drawn[80, 179]) == class_colour(2)
    assert tuple(drawn[80, 58]) == GREY


def test_truth_is_dashed_and_predictions_are_not():
    box, label = np.array([[40, 40, 200, 120]]), np.array([0])
    lines = {
        style: np.asarray(draw_objects(grey(), box, label, NAMES, style=style, captions=[""], side=240))[40, 40:200]
        for style in ("prediction", "truth")
    }
    assert (lines["prediction"] == class_colour(0)).all()
    white = (lines["truth"] == 255).all(axis=1)
    assert 0.3 < white.mean() < 0.7
    assert (lines["truth"][~white] == class_colour(0)).all()


def test_a_mask_is_translucent_with_an_opaque_rim():
    mask = np.zeros((1, 160, 240), dtype=bool)
    mask[0, 60:120, 80:160] = True
    arguments = np.array([[80, 60, 160, 120]]), np.array([1]), NAMES
    pixels = np.asarray(draw_objects(grey(), *arguments, masks=mask, captions=[""], side=240)).astype(float)
    blended = np.array(GREY) + MASK_OPACITY * (np.array(class_colour(1)) - GREY)
    assert np.abs(pixels[90, 120] - blended).max() <= 1
    assert tuple(pixels[20, 20]) == GREY
    # The same from run lengths.
    found = one((80, 60, 160, 120), 1, 0.5, [encode_rle(mask[0])])
    whole = one((80, 60, 160, 120), 1, 0.5, mask)
    assert draw_detections(grey(), found, NAMES, min_score=0, side=240) == draw_detections(
        grey(), whole, NAMES, min_score=0, side=240
    )


@pytest.mark.parametrize("seed", range(3))
def test_tags_neither_meet_nor_leave_the_picture(seed):
    random = np.random.default_rng(seed)
    image = grey(300, 200)
    draw, font, taken = ImageDraw.Draw(image), ImageFont.load_default(size=12), []
    corners = random.uniform(-10, 250, (60, 2)) * (1, 0.7)
    boxes = np.concatenate([corners, corners + random.uniform(1, 120, (60, 2))], axis=1)
    for row, box in enumerate(boxes):
        _tag(draw, box, np.delete(boxes, row, axis=0), "a rather long class name", (9, 99, 199), font, "truth", taken)
    assert 5 < len(taken) < 60
    covered = np.zeros((200, 300), dtype=int)
    for x1, y1, x2, y2 in taken:
        assert 0 <= x1 <= x2 < 300 and 0 <= y1 <= y2 < 200
        covered[y1 : y2 + 1, x1 : x2 + 1] += 1
    assert covered.max() == 1


def test_boxes_outside_or_of_no_size_do_no_harm():
    boxes = np.array([[-50, -50, -10, -10], [500, 500, 600, 600], [30, 30, 30, 30], [-5, -5, 900, 900]])
    assert draw_objects(grey(), boxes, np.array([0, 1, 2, 0]), NAMES, scores=np.full(4, 0.5), side=240).size == (
        240,
        160,
    )
    assert draw_objects(grey(), np.zeros((0, 4)), np.zeros(0, dtype=int), NAMES, side=240) == grey()


def test_classes_have_colours_of_their_own():
    colours = [class_colour(label) for label in range(90)]
    assert len(set(colours)) == 90
    first = np.array(colours[:10], dtype=float)
    apart = np.abs(first[:, None] - first[None]).max(axis=2) + 999 * np.eye(10)
    assert apart.min() > 40


def test_what_is_less_sure_is_left_out():
    found = Detections(np.array([[10.0, 10, 60, 60], [90, 90, 150, 150]]), np.array([0.9, 0.2]), np.array([0, 1]))
    assert draw_detections(grey(), found, NAMES, min_score=0.5) == draw_detections(
        grey(), one((10, 10, 60, 60), 0, 0.9), NAMES, min_score=0
    )
    assert draw_detections(grey(), found, NAMES, min_score=0.95, side=240) == grey()
    # A picture of a fair size keeps it.
    assert draw_detections(grey(700, 500), found, NAMES, min_score=0.5).size == (700, 500)


def test_the_sheet_counts_what_it_shows():
    found = Detections(np.tile([10.0, 10, 60, 60], (4, 1)), np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 2]))
    item = sheet_item("street.jpg", grey(), found, NAMES, min_score=0.5)
    assert (item.title, item.lines) == ("street.jpg", ["2 dog, 1 cat"])
    assert max(item.image.size) <= THUMB
    assert sheet_item("sky.jpg", grey(), found, NAMES, min_score=0.95).lines == ["nothing found"]
    assert detection_sheet([item, item]).width > 2 * THUMB
