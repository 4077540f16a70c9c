"""Masks in all their stored forms: closed forms, and equality with pycocotools."""

import numpy as np
import pytest

from limbeck.data.detection.masks import (
    decode_rle,
    decode_segment,
    encode_rle,
    mask_problem,
    segment_area,
    segment_box,
)
from limbeck.errors import MissingExtraError, UserError

coco_masks = pytest.importorskip("pycocotools.mask")
pytest.importorskip("faster_coco_eval")

RECTANGLE = [[2.0, 1.0, 7.0, 1.0, 7.0, 4.0, 2.0, 4.0]]


def random_masks() -> list[np.ndarray]:
    random = np.random.RandomState(0)
    shapes = [(1, 1), (5, 1), (1, 7), (13, 9), (40, 300), (300, 40)]
    masks = [random.rand(*shape) < share for shape in shapes for share in (0.02, 0.5, 0.98)]
    return [*masks, np.zeros((6, 5), bool), np.ones((6, 5), bool), np.ones((700, 900), bool)]


@pytest.mark.parametrize("mask", random_masks(), ids=lambda mask: f"{mask.shape}-{mask.mean():.2f}")
def test_run_lengths_are_those_of_pycocotools(mask: np.ndarray) -> None:
    ours = encode_rle(mask)
    theirs = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours["counts"].encode() == theirs["counts"]
    assert ours["size"] == list(theirs["size"])
    assert (decode_rle(ours, *mask.shape) == mask).all()
    assert (coco_masks.decode(ours) == mask).all()
    assert segment_area(ours) == mask.sum()
    if mask.any():
        x, y, width, height = coco_masks.toBbox(theirs)
        assert segment_box(ours) == segment_box(mask) == (x, y, x + width, y + height)


def test_uncompressed_run_lengths_count_down_the_columns() -> None:
    mask = decode_rle({"size": [3, 2], "counts": [1, 3, 2]}, 3, 2)
    assert mask.tolist() == [[False, True], [True, False], [True, False]]


def test_a_rectangle_on_whole_pixels_is_its_own_mask() -> None:
    mask = decode_segment(RECTANGLE, 6, 9)
    assert mask.sum() == segment_area(RECTANGLE) == 15
    assert segment_box(RECTANGLE) == segment_box(mask) == (2, 1, 7, 4)
    assert mask[1:4, 2:7].all()


def test_polygons_are_filled_as_pycocotools_fills_them() -> None:
    random = np.random.RandomState(1)
    for _ in range(50):
        parts = [(random.rand(2 * random.randint(3, 9)) * 60 - 5).tolist() for _ in range(random.randint(1, 4))]
        theirs = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(parts, 40, 50)))
        assert (decode_segment(parts, 40, 50) == theirs.astype(bool)).all()


def test_the_area_of_a_convex_polygon_is_that_of_its_mask_to_its_border() -> None:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    circle = [np.stack([50 + 30 * np.cos(angles), 50 + 30 * np.sin(angles)], 1).ravel().tolist()]
    assert segment_area(circle) == pytest.approx(0.5 * 60 * 30**2 * np.sin(2 * np.pi / 60))
    assert segment_area(circle) == pytest.approx(decode_segment(circle, 100, 100).sum(), rel=0.02)
    reverse = [np.array(circle[0]).reshape(-1, 2)[::-1].ravel().tolist()]
    assert segment_area(reverse) == pytest.approx(segment_area(circle))


@pytest.mark.parametrize(
    ("segment", "reason", "detail"),
    [
        ([[1, 1, 5, 5]], "polygon of fewer than three points", "2 points"),
        ([[1, 1, 5, 5, 3]], "unreadable mask", "5 coordinates"),
        ([[1, 1, 5, 5, 3, float("nan")]], "unreadable mask", "no numbers"),
        ([[1, 1, 5, 5, 3, "x"]], "unreadable mask", "no numbers"),
        ([1, 1, 5, 5, 3, 3], "unreadable mask", "neither"),
        ("polygon", "unreadable mask", "neither"),
        ({"size": [9, 6], "counts": [54]}, "RLE of the wrong size", r"\[9, 6\]"),
        ({"size": [6, 9], "counts": [10, 5]}, "RLE of the wrong size", "15 pixels"),
        ({"size": [6, 9], "counts": [60, -6]}, "damaged RLE", "negative"),
        ({"size": [6, 9], "counts": "\x01\x02"}, "damaged RLE", "none of an RLE"),
        ({"size": [6, 9], "counts": "äöü"}, "damaged RLE", "damaged"),
        ({"size": [6, 9], "counts": "o" * 40}, "damaged RLE", "cut off"),
        ({"size": [6, 9], "counts": "o" * 40 + "0"}, "damaged RLE", "too long"),
        ({"size": [6, 9], "counts": [1.5, 52.5]}, "damaged RLE", "whole numbers"),
        ({"size": [6, 9]}, "damaged RLE", "neither text"),
        ({"counts": [54]}, "RLE of the wrong size", "None"),
        ({"size": [6, 9], "counts": [54]}, "empty mask", "no pixel"),
    ],
)
def test_what_is_wrong_with_a_mask(segment: object, reason: str, detail: str) -> None:
    found = mask_problem(segment, 6, 9)
    assert found is not None
    assert found[0] == reason
    import re

    assert re.search(detail, found[1])


@pytest.mark.parametrize("segment", [RECTANGLE, encode_rle(np.eye(6, 9)), {"size": [6, 9], "counts": [50, 4]}])
def test_nothing_is_wrong_with_a_good_mask(segment: object) -> None:
    assert mask_problem(segment, 6, 9) is None


def test_a_mask_of_another_size_is_never_stretched() -> None:
    with pytest.raises(UserError, match="size"):
        decode_segment(encode_rle(np.ones((4, 4))), 4, 5)
    with pytest.raises(UserError, match="must be the same"):
        decode_segment(np.ones((4, 4), bool), 4, 5)


def test_polygons_without_the_extra_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    with pytest.raises(MissingExtraError, match=r"limbeck\[detection\]"):
        decode_segment(RECTANGLE, 6, 9)
    assert decode_segment(encode_rle(np.ones((2, 2))), 2, 2).all()
